"""One run of the leaderboard, from its cell to what came out."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from haq_env.errors import InputError, unknown_name
from haq_env.leaderboard.arithmetic import arithmetic
from haq_env.leaderboard.protocol import Cell, Improvement, Outcome, Track
from haq_env.leaderboard.store import CACHE
from haq_env.search import Search
from haq_env.search.history import Trial


def find_method(name: str, track: Track, cache: Path | None = None) -> Search:
    """Return a method as it runs on a track.

    Args:
        name: one of `haq_env.agents.methods.methods`, "transfer-" names included.
        track: where it is to run.
        cache: evaluation cache for what it learns on the track's source.

    Raises:
        InputError: there is no such method, a package that it needs is missing, or it learns
            before, and the track has no source.
    """
    from haq_env.agents.methods import TRANSFER, methods, search_method

    known, source = methods(transfer=True), track.source
    if name not in known:
        raise unknown_name("method", name, known)
    if source is not None:
        return search_method(name, lambda: source.task(cache=cache))
    if name.startswith(TRANSFER):
        raise InputError(
            f"{name} learns on another track first, and {track.name} has none for that: only the "
            "tracks of the suite transfer have one."
        )
    return search_method(name)


def run_cell(track: Track, cell: Cell, folder: Path | None = None) -> Outcome:
    """Run a method on a track, on one thread.

    A run that was killed begins anew: methods do the same again for the same seed, and what had
    been measured is found in the evaluation cache.

    Args:
        track: the problem that the cell names.
        cell: method, seed and number of evaluations.
        folder: where the evaluation cache is kept; a folder of this user among the temporary ones
            of this machine when None.

    Raises:
        InputError: there is no such method on this track, the track cannot be built, or this
            machine has other images than it is about, or no integer kernels where it is about them.
        RuntimeError: the method measured more policies than it was allowed.
    """
    from haq_env.evaluation.device import one_thread

    folder = local_folder() if folder is None else folder
    search = find_method(cell.method, track, folder / CACHE)
    track.check_images()
    with one_thread():  # answers of one and of two threads may differ in their last digits
        task = track.task(cache=folder / CACHE)
        track.check_kernels(task)
        task.float_accuracy  # noqa: B018  # loads network and images, which is no part of a search
        start = time.perf_counter()
        history = search(task, cell.evaluations, cell.seed)
        wall = time.perf_counter() - start
    if len(history) > cell.evaluations:
        raise RuntimeError(f"{cell}: it measured {len(history)} policies.")
    charge = history.charge
    return Outcome(
        cell,
        improvements(history),
        len(history),
        0.0 if charge is None else charge.evaluations,
        len(history) - len({(trial.w_bits, trial.a_bits) for trial in history}),
        wall - sum(trial.seconds for trial in history),
        wall,
        arithmetic(),
    )


def improvements(trials: Sequence[Trial]) -> tuple[Improvement, ...]:
    """List the trials that were better than all before them; the first one always is."""
    steps: list[Improvement] = []
    for number, trial in enumerate(trials, start=1):
        if not steps or trial.accuracy > steps[-1].accuracy:
            steps.append(Improvement(number, trial.w_bits, trial.a_bits, trial.accuracy))
    return tuple(steps)


def local_folder() -> Path:
    """Make a folder on this machine that no other user can have put anything into.

    Raises:
        InputError: there is one already that belongs to somebody else.
    """
    user = getattr(os, "getuid", lambda: "user")()
    folder = Path(tempfile.gettempdir()) / f"haq-env-leaderboard-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    strange = hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o077)
    if strange or not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{folder} belongs to somebody else: remove it, or give another folder.")
    return folder
