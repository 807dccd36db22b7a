"""One run of the leaderboard, from its cell to what came out."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from haq_env.errors import InputError
from haq_env.leaderboard.arithmetic import arithmetic
from haq_env.leaderboard.protocol import Cell, Outcome, Step, Track
from haq_env.leaderboard.store import CACHE
from haq_env.search.history import Trial


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
        InputError: there is no such method, or the track cannot be built.
        RuntimeError: the method measured more policies than it was allowed.
    """
    from haq_env.agents.methods import search_method
    from haq_env.evaluation.batch import one_thread

    folder = local_folder() if folder is None else folder
    with one_thread():  # answers of one and of two threads may differ in their last digits
        task = track.task(cache=folder / CACHE)
        task.float_accuracy  # noqa: B018  # loads network and images, which is no part of a search
        start = time.perf_counter()
        history = search_method(cell.method)(task, cell.evaluations, cell.seed)
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


def improvements(trials: Sequence[Trial]) -> tuple[Step, ...]:
    """List the trials that were better than all before them; the first one always is."""
    steps: list[Step] = []
    for number, trial in enumerate(trials, start=1):
        if not steps or trial.accuracy > steps[-1].accuracy:
            steps.append(Step(number, trial.w_bits, trial.a_bits, trial.accuracy))
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
