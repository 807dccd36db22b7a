"""Worker processes that measure policies side by side, each with a network of its own.

A small network gains little from a second thread, and a second process nearly doubles the
throughput. Every worker runs torch on one thread; so an answer does not depend on how many of them
there are.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from haq_env.errors import InputError
from haq_env.policy import Bits
from haq_env.processes import prepare_worker

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from haq_env.evaluation.measuring import Measurer
    from haq_env.evaluation.recipe import Evaluation


class WorkerError(RuntimeError):
    """Worker processes ended although nobody asked them to, or could not be started."""


class Workers:
    """Processes that hold the same network, started at the first policy.

    Args:
        measurer: what every worker gets a copy of.
        count: how many, at least 1.

    Raises:
        InputError: the network or the data set cannot be sent to another process, or this is
            itself a worker that runs a script from its beginning.
    """

    def __init__(self, measurer: Measurer, count: int) -> None:
        _not_inside_a_worker()
        try:
            content = pickle.dumps(measurer)
        except Exception as error:  # pickle lets through what the objects themselves raise
            raise InputError(
                f"workers: the network or the data set cannot be sent to another process ({error})."
            ) from error
        # a fork of a process that has run torch may hang, so the workers start from nothing
        context = multiprocessing.get_context("spawn")
        self._started = context.Event()
        self._pool: ProcessPoolExecutor | None = ProcessPoolExecutor(
            count, context, _prepare, (content, self._started)
        )

    def measure(self, policies: Sequence[Bits], best: float) -> Iterator[Evaluation]:
        """Yield the answers in the order of the policies, each as soon as it is there.

        Args:
            policies: each int64 [L, 2].
            best: the best accuracy so far, in percent, for early stopping.

        Raises:
            WorkerError: a worker ended; none is left then, and this object is of no more use.
        """
        if self._pool is None:
            raise WorkerError("the worker processes have been closed.")
        futures: list[Future[Evaluation]] = []
        try:
            futures.extend(self._pool.submit(_measure, bits, best) for bits in policies)
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            self.close()
            raise WorkerError(self._why()) from error
        finally:  # the caller may have had enough, or a policy failed
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the workers; what they are measuring is waited for."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _why(self) -> str:
        if self._started.is_set():
            return (
                "a worker process ended while it measured a policy (killed from outside, or out "
                "of memory?); answers that had arrived are kept."
            )
        return (
            "the worker processes could not start. Each imports the script that started it: what "
            'the script runs must stand under `if __name__ == "__main__":`.'
        )


def _not_inside_a_worker() -> None:
    # set while a new process imports the main script, which is before it can have workers
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(
            "workers: a worker process has run this script from its beginning. Put what the "
            'script runs under `if __name__ == "__main__":`.'
        )


# -- inside a worker ---------------------------------------------------------------------------

_content = b""
_measurer: Measurer | None = None


def _prepare(content: bytes, started: Event) -> None:
    # unpacked at the first policy: an error here would end the worker without being told
    global _content
    _content = content
    prepare_worker()
    started.set()


def _measure(bits: Bits, best: float) -> Evaluation:
    global _measurer
    import torch

    torch.set_num_threads(1)
    if _measurer is None:
        try:
            _measurer = pickle.loads(_content)  # bytes that the main process made, never a file
        except (AttributeError, ImportError) as error:
            raise InputError(
                f"workers: another process cannot find the network's or the data set's code "
                f"({error}). Put it into a module that can be imported; a notebook is none."
            ) from error
    return _measurer.measure(bits, best)
