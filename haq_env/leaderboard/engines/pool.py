"""Runs side by side in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

from haq_env.leaderboard.protocol import Cell, Outcome, Track
from haq_env.leaderboard.running import run_cell
from haq_env.processes import prepare_worker

PATIENCE = 30.0  # seconds for a worker to start before it can be ended


def start(folder: Path, jobs: int, address: str) -> Pool:
    """Start the engine; see `haq_env.leaderboard.engines.start_engine`."""
    return Pool(folder, jobs)


class Pool:
    """Worker processes, each a pool of its own, so that one that dies takes no other run with it.

    Args:
        folder: where evaluations are kept.
        jobs: how many workers, 1 or more.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self._folder = folder
        self._jobs = jobs
        self._idle: list[_Worker] = []
        self._busy: dict[Future[Outcome], _Worker] = {}

    def slots(self) -> int:
        """Return the number of workers."""
        return self._jobs

    def submit(self, track: Track, cell: Cell) -> Future[Outcome]:
        """Begin a run in a worker that is free, or in a new one."""
        for future in [future for future in self._busy if future.done()]:
            self._idle.append(self._busy.pop(future))
        while True:
            worker = self._idle.pop() if self._idle else _Worker()
            try:
                future = worker.executor.submit(run_cell, track, cell, self._folder)
            except BrokenProcessPool:  # it died; a new one takes its place
                worker.end()
                continue
            self._busy[future] = worker
            return future

    def close(self) -> None:
        """End all workers at once."""
        workers = [*self._idle, *self._busy.values()]
        self._idle, self._busy = [], {}
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self) -> None:
        # a fork of a process that has run torch may hang, so the worker starts from nothing
        context = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(1, context, prepare_worker)
        self._pid = self.executor.submit(os.getpid)

    def end(self) -> None:
        with suppress(Exception):  # it may not have started
            pid = self._pid.result(PATIENCE)
            for child in multiprocessing.active_children():  # not a number that is another's now
                if child.pid == pid:
                    child.kill()
        self.executor.shutdown(wait=True, cancel_futures=True)
