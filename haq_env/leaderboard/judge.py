"""Executing policies again: the accuracy inside the search, and the one that counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from haq_env.errors import InputError
from haq_env.leaderboard.protocol import FRESH_SEEDS, find_track
from haq_env.policy import Bits, from_digits
from haq_env.processes import abandon, prepare_worker
from haq_env.task import Task


class Question(NamedTuple):
    """A policy to be executed.

    Attributes:
        track: name of its track.
        w_bits: a digit for each layer.
        a_bits: likewise.
        fresh: False asks for the accuracy inside the search, held-out images and the track's own
            seed; True for those on test images with `FRESH_SEEDS`.
    """

    track: str
    w_bits: str
    a_bits: str
    fresh: bool


def measure_all(
    questions: Sequence[Question], cache: Path | None = None, jobs: int = 1
) -> Iterator[tuple[float, ...]]:
    """Execute policies, and yield what came out in their order: top-1 in percent, one or three.

    Args:
        questions: what to execute.
        cache: evaluation cache that answers are kept in, so that a killed call goes on where it
            was; its keys hold everything that decides an answer. Never one that came with a
            submission.
        jobs: processes. In each of them torch has one thread, or answers might differ.

    Raises:
        InputError: a process died.
    """
    if jobs == 1 or len(questions) < 2:
        yield from (_measure(question, cache) for question in questions)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    # in the order of tracks, or each process would load all networks at once
    with ProcessPoolExecutor(jobs, context, initializer=prepare_worker) as pool:
        try:
            yield from pool.map(_measure, questions, [cache] * len(questions), chunksize=4)
        except BrokenProcessPool as error:
            raise InputError(
                "a process that executes policies has died (out of memory?): call it again, it "
                "goes on where it was."
            ) from error
        except KeyboardInterrupt:
            abandon(pool)  # answers that have come are in the cache
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _measure(question: Question, cache: Path | None) -> tuple[float, ...]:
    from haq_env.evaluation.device import one_thread

    with one_thread():
        bits = from_digits(question.w_bits, question.a_bits)
        judge = _judge(question.track, cache)
        if question.fresh:
            return judge.test(bits)
        answer = judge.task.evaluate(bits)
        if answer.note:  # integer kernels that do not serve for this policy alone
            raise InputError(f"a policy of {question.track} cannot be executed: {answer.note}.")
        return (answer.accuracy,)


@lru_cache(maxsize=2)  # networks and images; questions come track by track
def _judge(track: str, cache: Path | None) -> _Judge:
    found = find_track(track)
    found.check_images()
    task = found.task(cache=cache)
    found.check_kernels(task)
    return _Judge(task)


class _Judge:
    """What executes the policies of one track."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._evaluator = task.trained()
        self._address = ""

    def test(self, bits: Bits) -> tuple[float, ...]:
        """Measure a policy on the test images after finetuning with each fresh seed."""
        return tuple(self._test(bits, seed) for seed in FRESH_SEEDS)

    def _test(self, bits: Bits, seed: int) -> float:
        from haq_env.evaluation.cache import Origin
        from haq_env.evaluation.fingerprint import digest, fingerprint

        evaluator, cache = self._evaluator, self._evaluator.cache
        if cache is None:
            return evaluator.final(bits, evaluator.recipe, seed, ("test",))["test"]
        if not self._address:
            images = {**evaluator.bench.images, "val": evaluator.bench.images["test"]}
            settings = ("test", evaluator.subject.clip, evaluator.recipe, *evaluator.arithmetic)
            self._address = fingerprint(evaluator.bench.network, images, settings)
        key = digest([(f"{self._address} {seed}", bits.tobytes())])
        known = cache.get(key)
        if known is not None:
            return known
        found = evaluator.final(bits, evaluator.recipe, seed, ("test",))["test"]
        names = self.task.settings
        tier = f"{names['evaluator']}, test images"
        origin = Origin(names["network"], names["dataset"], names["quantizer"], tier, str(seed))
        return cache.put(key, found, 0.0, bits, origin)
