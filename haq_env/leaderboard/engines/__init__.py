"""Where runs are computed: in this process, in a pool of processes, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from haq_env.errors import InputError
from haq_env.leaderboard.protocol import Cell, Outcome, Track
from haq_env.registry import Registry


class Engine(Protocol):
    """Something that computes runs. Only whoever asks for them writes the store."""

    def slots(self) -> int:
        """Return how many runs it can compute at once, now.

        Raises:
            InputError: there is nothing left that could compute.
        """
        ...

    def submit(self, track: Track, cell: Cell) -> Future[Outcome]:
        """Begin a run; the future has its outcome, or the exception that ended it.

        Raises:
            InputError: the engine is gone.
        """
        ...

    def close(self) -> None:
        """End everything at once, runs in the middle included."""
        ...


class Start(Protocol):
    """What starts an engine; it takes no notice of what is not about its kind."""

    def __call__(self, folder: Path, jobs: int, address: str) -> Engine:
        """Start an engine; arguments and errors are those of `start_engine`."""
        ...


# One line for each engine.
ENGINES: Mapping[str, Start] = Registry(
    "engine",
    {
        "inprocess": "haq_env.leaderboard.engines.inprocess:start",
        "pool": "haq_env.leaderboard.engines.pool:start",
        "ray": "haq_env.leaderboard.engines.cluster:start",
    },
)


def start_engine(name: str, folder: Path, *, jobs: int = 1, address: str = "auto") -> Engine:
    """Start an engine by its name.

    Args:
        name: one of `ENGINES`.
        folder: where evaluations are kept. With Ray every node keeps its own elsewhere, since
            SQLite must not live on a network drive.
        jobs: processes of the pool, 1 or more.
        address: of the Ray cluster: ``"host:port"``, ``"ray://host:port"``, or ``"auto"`` for the
            one that this machine belongs to.

    Raises:
        InputError: there is no such engine, its package is missing, or the cluster does not answer.
    """
    if jobs < 1:
        raise InputError(f"jobs must be 1 or more, not {jobs}.")
    return ENGINES[name](folder, jobs, address)
