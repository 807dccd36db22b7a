"""Runs one after another in this process."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from haq_env.leaderboard.protocol import Cell, Outcome, Track
from haq_env.leaderboard.running import run_cell


def start(folder: Path, jobs: int, address: str) -> InProcess:
    """Start the engine; see `haq_env.leaderboard.engines.start_engine`."""
    return InProcess(folder)


class InProcess:
    """The simplest engine: asking for a run computes it.

    Args:
        folder: where evaluations are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def slots(self) -> int:
        """Return 1."""
        return 1

    def submit(self, track: Track, cell: Cell) -> Future[Outcome]:
        """Compute a run; the future is done."""
        future: Future[Outcome] = Future()
        try:
            future.set_result(run_cell(track, cell, self._folder))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Do nothing: nothing runs."""
