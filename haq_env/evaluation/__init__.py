"""Evaluators: policy -> accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from haq_env.evaluation.recipe import RECIPES, Evaluation, Recipe
from haq_env.policy import Bits

__all__ = ["RECIPES", "Evaluation", "Evaluator", "Recipe", "Remembering", "Streaming"]


@runtime_checkable
class Evaluator(Protocol):
    """Anything that can say how accurate a network is under a policy."""

    @property
    def float_accuracy(self) -> float:
        """Accuracy of the float network on the held-out images, in percent."""
        ...

    def evaluate(self, bits: Bits) -> Evaluation:
        """Measure a policy, int64 [L, 2]. The same policy must get the same answer."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """An evaluator that has a faster way for several policies than one after the other."""

    def evaluate_each(self, policies: Bits | Sequence[Bits]) -> Iterator[Evaluation]:
        """Measure policies, int64 [N, L, 2]; yield the answers of `evaluate` as they come."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """An evaluator that keeps its answers, and takes those of an earlier run."""

    def remember(self, bits: Bits, accuracy: float) -> None:
        """Keep the accuracy of a policy, int64 [L, 2], in percent."""
        ...
