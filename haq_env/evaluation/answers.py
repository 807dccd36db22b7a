"""What is known of policies already: answers in memory, and in a cache if there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from haq_env.evaluation.recipe import Evaluation
from haq_env.policy import Bits

if TYPE_CHECKING:
    from haq_env.evaluation.cache import EvaluationCache, Origin


class Answers:
    """Answers to policies by `key_of`; estimates are kept apart, and in memory only.

    Args:
        cache: answers of other processes and earlier runs; None keeps them in memory only.
        races: whether an accuracy below the best may be an estimate, because of early stopping.

    Attributes:
        best: the best accuracy that is no estimate, in percent; minus infinity before the first.
        seconds: time that the answers took that were measured here.
    """

    def __init__(self, cache: EvaluationCache | None, *, races: bool = False) -> None:
        self.cache = cache
        self.best = -math.inf
        self.seconds = 0.0
        self._races = races
        self._measured: dict[bytes, float] = {}
        self._estimated: dict[bytes, float] = {}  # of policies that were given up

    def recall(self, key: bytes, address: Callable[[bytes], str]) -> Evaluation | None:
        """Return the answer to a policy that was measured before.

        Args:
            key: the policy.
            address: of a key in the cache; called only if memory does not know it.
        """
        if key in self._measured:
            return Evaluation(self._measured[key], cache_hit=True)
        if key in self._estimated:
            return Evaluation(self._estimated[key], cache_hit=True, stopped_early=True)
        found = None if self.cache is None else self.cache.get(address(key))
        if found is None:
            return None
        self._know(key, found)
        return Evaluation(found, cache_hit=True)

    def keep(
        self, key: bytes, answer: Evaluation, address: Callable[[bytes], str], origin: Origin
    ) -> Evaluation:
        """Remember an answer; only one that is no estimate goes to the cache.

        Args:
            key: the policy.
            answer: to it, as it was measured.
            address: of a key in the cache.
            origin: what the cache notes beside it.

        Returns:
            The answer, with the accuracy of the process that was first.
        """
        self.seconds += answer.seconds
        if answer.stopped_early:
            self._estimated[key] = answer.accuracy
            return answer
        if self.cache is not None:  # another process may have been first, and its answer counts
            where, bits = address(key), bits_of(key)
            accuracy = self.cache.put(where, answer.accuracy, answer.seconds, bits, origin)
            answer = replace(answer, accuracy=accuracy)
        self._know(key, answer.accuracy)
        return answer

    def remember(self, key: bytes, accuracy: float) -> None:
        """Keep what an earlier run measured; in a race, less than the best may be an estimate."""
        if self._races and accuracy < self.best:
            self._estimated[key] = accuracy
        else:
            self._know(key, accuracy)

    def _know(self, key: bytes, accuracy: float) -> None:
        self._measured[key] = accuracy
        self.best = max(self.best, accuracy)


def key_of(bits: Bits) -> bytes:
    """Return a policy, int64 [L, 2], as 2 L bytes."""
    return bits.astype(np.uint8).tobytes()


def bits_of(key: bytes) -> Bits:
    """Return the policy, int64 [L, 2], of a key."""
    return np.frombuffer(key, dtype=np.uint8).astype(np.int64).reshape(-1, 2)
