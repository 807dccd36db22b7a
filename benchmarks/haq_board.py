"""What methods have gained over uniform bits in the cells of HAQ's tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from haq_paper import BLOCKS, TableCell
from haq_results import EIGHT, UNIFORM, Result

from haq_env.report.scores import mean_and_error

CHOSEN = "best on held-out"  # of the methods of a cell, by held-out images after finetuning


@dataclass(frozen=True)
class Gain:
    """Searched minus uniform in one cell, in points of top-1 on the test images.

    Attributes:
        value: mean over finetuning seeds, paired seed by seed.
        error: standard error over seeds; NaN for one seed. Test images are no part of it.
        method: what searched.
    """

    value: float
    error: float
    method: str

    @property
    def clear(self) -> bool:
        """Whether it is more than two standard errors from zero."""
        return abs(self.value) > 2 * self.error


class Board:
    """Results by what they are of.

    Accuracies are subtracted only where both were finetuned with the same sums: on another
    processor the same policy comes out by points higher or lower.

    Args:
        results: at most one of each key.
        methods: searches that are compared, in order.
    """

    def __init__(self, results: Iterable[Result], methods: Sequence[str]) -> None:
        self.methods = tuple(methods)
        self._found: dict[tuple[str, ...], list[Result]] = {}
        for result in results:
            self._found.setdefault(result.what, []).append(result)
        self._uniform = {
            (*_policy(each), each.sums): each
            for found in self._found.values()
            for each in found
            if each.method == UNIFORM
        }

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """All kinds of sums that finetuned results."""
        return sorted({each.sums for found in self._found.values() for each in found})

    def letter(self, sums: tuple[str, int]) -> str:
        """Return what tables call a kind of sums: A, B, ..."""
        return chr(ord("A") + self.kinds.index(sums))

    def __len__(self) -> int:
        return sum(map(len, self._found.values()))

    def references(self, network: str, method: str, quantizer: str = "") -> list[Result]:
        """Return the float or the 8-bit network, from every kind of sums."""
        return self._found.get((network, "", "", method, quantizer), [])

    def at(self, cell: TableCell, method: str) -> Result | None:
        """Return what a method has reached in a cell, None where it was not run.

        `CHOSEN` is the method that is best on the held-out images after the final finetuning, so
        that the test images choose nothing.
        """
        if method == CHOSEN:
            run = [self.at(cell, name) for name in self.methods]
            there = [result for result in run if result is not None]
            return max(there, key=lambda each: each.mean_and_error("val")[0], default=None)
        found = self._found.get((*cell, method, ""), [])
        paired = [result for result in found if self.uniform_beside(result) is not None]
        return next(iter(paired or found), None)

    def has(self, cell: TableCell) -> bool:
        """Return whether any method has been run in a cell, the uniform policy included."""
        return any(self.at(cell, method) for method in (UNIFORM, *self.methods))

    def uniform_beside(self, result: Result) -> Result | None:
        """Return the uniform policy of a result's cell, finetuned with the same sums.

        It may have been finetuned in another cell: there are budgets of the same uniform policy.
        """
        cell = (result.network, result.block, result.budget, UNIFORM, "")
        found = self._found.get(cell, [])
        for uniform in found:
            if uniform.sums == result.sums:
                return uniform
        for uniform in found:
            known = self._uniform.get((*_policy(uniform), result.sums))
            if known is not None:  # the accuracies are of the policy, the costs of this cell
                return replace(
                    uniform,
                    processor=known.processor,
                    steps=known.steps,
                    val=known.val,
                    test=known.test,
                )
        return None

    def uniforms(self, cell: TableCell) -> list[Result]:
        """Return what the gains of a cell are measured from, one for every kind of sums."""
        run = [self.at(cell, method) for method in (UNIFORM, *self.methods)]
        beside = [self.uniform_beside(result) for result in run if result is not None]
        return list({each.sums: each for each in beside if each is not None}.values())

    def gain(self, cell: TableCell, method: str) -> Gain | None:
        """Return searched minus uniform, None where either was not run."""
        ours = self.at(cell, method)
        uniform = None if ours is None else self.uniform_beside(ours)
        if ours is None or uniform is None:
            return None
        value, error = mean_and_error(np.subtract(ours.test, uniform.test).tolist())
        return Gain(value, error, ours.method)

    def loss(self, cell: TableCell, method: str) -> float | None:
        """Return how far a searched policy is below 8 bits, in points on the test images."""
        ours = self.at(cell, method)
        return None if ours is None else self.below_eight(ours)

    def below_eight(self, result: Result) -> float | None:
        """Return how far a result is below 8 bits of the same sums, None where those are not."""
        for eight in self.references(result.network, EIGHT, BLOCKS[result.block].quantizer):
            if eight.sums == result.sums:
                return eight.mean_and_error("test")[0] - result.mean_and_error("test")[0]
        return None


def _policy(result: Result) -> tuple[str, str, str, str]:
    return result.network, result.quantizer, result.w_bits, result.a_bits
