"""Many runs: claimed from a store, computed by an engine, their outcomes kept.

A sweep may be killed at any moment, started again, and run beside others on the same store.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from haq_env.errors import InputError
from haq_env.leaderboard.engines import Engine
from haq_env.leaderboard.owner import LEASE, Owner
from haq_env.leaderboard.protocol import (
    MOST_EVALUATIONS,
    TRACKS,
    Cell,
    Outcome,
    Track,
    check_seeds,
    find_track,
)
from haq_env.leaderboard.running import find_method
from haq_env.leaderboard.store import State, Store

POLL = 0.5  # seconds between two looks at what others and the engine do
LONGEST_ERROR = 4000  # characters that are kept; the end says most


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Attributes:
        cell: the run.
        state: ``"running"``, ``"done"``, ``"waiting"`` (for its next attempt) or ``"failed"``.
        error: why the attempt failed; empty if it did not.
    """

    cell: Cell
    state: State
    error: str = ""


def cells_of(
    tracks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    evaluations: int | None = None,
) -> list[Cell]:
    """List runs seed by seed, so that a part of them is a fair comparison.

    Args:
        tracks: names of tracks.
        methods: names of methods.
        seeds: of the methods.
        evaluations: of each run; None takes as many as the last checkpoint of its suite.

    Raises:
        InputError: a track or a method is unknown, a method learns before on a track that has no
            source or needs a package that is missing, or a seed or the number of evaluations is
            outside the protocol.
    """
    lengths = {name: find_track(name).suite.checkpoints[-1] for name in tracks}
    for track, method in itertools.product(tracks, methods):
        find_method(method, find_track(track))  # errors come now, and not in every run
    check_seeds(seeds)
    if evaluations is not None:
        if not 1 <= evaluations <= MOST_EVALUATIONS:
            raise InputError(f"evaluations must be 1 to {MOST_EVALUATIONS}, not {evaluations}.")
        lengths = dict.fromkeys(lengths, evaluations)
    kinds = itertools.product(dict.fromkeys(seeds), lengths, dict.fromkeys(methods))
    return [Cell(track, method, seed, lengths[track]) for seed, track, method in kinds]


def sweep(
    store: Store,
    cells: Sequence[Cell],
    engine: Engine,
    *,
    tracks: Mapping[str, Track] = TRACKS,
    minutes: float = math.inf,
    tell: Callable[[Event], None] = lambda event: None,
) -> Counter[State]:
    """Run what is not done yet, and what dead sweeps have left; wait for what others run.

    An exception that ends it (Ctrl-C, a full disk) ends the runs in the middle too, and gives them
    back.

    Args:
        store: where runs are claimed and their outcomes are kept.
        cells: the runs.
        engine: what computes them; it is closed at the end.
        tracks: the problems that cells name.
        minutes: begin no run after so many.
        tell: called with everything that happens.

    Returns:
        How many of the cells are in which state.

    Raises:
        InputError: the store cannot be written, or the engine is gone.
    """
    owner = Owner()
    end = time.monotonic() + 60 * minutes
    running: dict[Future[Outcome], Cell] = {}

    def begin() -> None:
        while time.monotonic() < end and len(running) < engine.slots():
            cell = store.claim(owner, cells)
            if cell is None:
                return
            tell(Event(cell, "running"))
            running[engine.submit(tracks[cell.track], cell)] = cell

    try:
        store.add(cells)
        with _beating(store, owner):
            while True:
                begin()
                if running:
                    for future in wait(running, POLL, FIRST_COMPLETED).done:
                        event = _settle(store, owner, running.pop(future), future)
                        if event is not None:
                            tell(event)
                elif time.monotonic() >= end or not _open(store, cells):
                    return store.count(cells)
                else:  # another sweep has the rest, and may die
                    time.sleep(POLL)
    finally:
        try:
            engine.close()
        finally:  # also when a second Ctrl-C ends the closing
            with suppress(InputError):  # what cannot be given back is taken when we are gone
                store.release(owner)


def _open(store: Store, cells: Sequence[Cell]) -> int:
    states = store.count(cells)
    return states["waiting"] + states["running"]


def _settle(store: Store, owner: Owner, cell: Cell, future: Future[Outcome]) -> Event | None:
    """Write down how a run ended; None if it had been given to another sweep."""
    error = future.exception()
    if error is None:
        return Event(cell, "done") if store.finish(owner, future.result()) else None
    text = _describe(error)
    state = store.fail(owner, cell, text)
    return None if state is None else Event(cell, state, text)


def _describe(error: BaseException) -> str:
    if isinstance(error, InputError):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()[-LONGEST_ERROR:]


@contextmanager
def _beating(store: Store, owner: Owner) -> Iterator[None]:
    """Give signs of life from a thread, since an engine may compute in this one."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(LEASE / 6):
            with suppress(InputError):  # a store that cannot be written is told by who writes more
                store.beat(owner)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
