"""Verified numbers: what executing a submission again gave. Tables are made from nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from haq_env.leaderboard.arithmetic import Tolerance
from haq_env.leaderboard.protocol import Cell, checkpoints

Key = tuple[str, str, str]  # track, w_bits, a_bits


@dataclass(frozen=True)
class Scored:
    """A policy that has been executed.

    Attributes:
        track: name of its track.
        w_bits: a digit for each layer.
        a_bits: likewise.
        cost: in the unit of the track's metric.
        cost_ratio: to the cost of the 8-bit network.
        accuracy: top-1 on held-out images with the track's own seed, in percent.
        test: top-1 on test images for each of `FRESH_SEEDS`; empty where only the accuracy
            inside the search was of interest.
    """

    track: str
    w_bits: str
    a_bits: str
    cost: float
    cost_ratio: float
    accuracy: float
    test: tuple[float, ...] = ()

    @property
    def key(self) -> Key:
        """Track and bits: what it is found by."""
        return self.track, self.w_bits, self.a_bits

    @property
    def score(self) -> float:
        """Mean of the test accuracies, in percent."""
        return float(np.mean(self.test))

    def agrees(self, other: Scored, tolerance: Tolerance) -> bool:
        """Say whether both have the same accuracies that differ by so little, and no cost."""
        if len(self.test) != len(other.test):
            return False
        pairs = [(self.accuracy, other.accuracy), *zip(self.test, other.test, strict=True)]
        near = all(abs(ours - theirs) <= tolerance.single for ours, theirs in pairs)
        if self.test:
            near &= abs(self.score - other.score) <= tolerance.score
        return near and bool(
            np.isclose(self.cost, other.cost, rtol=1e-9)
            and np.isclose(self.cost_ratio, other.cost_ratio, rtol=1e-9)
        )


@dataclass(frozen=True)
class VerifiedRun:
    """A run whose policies have been executed.

    Attributes:
        cell: the run.
        steps: evaluation and policy of its improvements, in order.
        evaluations: how many policies it measured, as declared.
        charge: what it computed before, in evaluations, as declared.
        repeats: evaluations of known policies, as declared.
        seconds: outside the evaluator, as declared.
    """

    cell: Cell
    steps: tuple[tuple[int, Scored], ...]
    evaluations: int
    charge: float = 0.0
    repeats: int = 0
    seconds: float = 0.0

    def best_after(self, evaluations: int) -> Scored:
        """Return the policy that the run had after so many evaluations.

        It is the one of the highest accuracy inside the search, the first one where two are, as
        it was measured here: who claims more for one of them moves nothing.
        """
        found = [policy for number, policy in self.steps if number <= evaluations]
        return max(found, key=lambda policy: policy.accuracy)

    @property
    def scored(self) -> list[Scored]:
        """What is measured on test images: the uniform policy, and those at checkpoints."""
        counts = checkpoints(self.cell)
        return list(dict.fromkeys((self.steps[0][1], *map(self.best_after, counts))))


@dataclass(frozen=True)
class Verified:
    """The verified numbers of one submission.

    Attributes:
        name: of its folder.
        title: in a few words.
        authors: who made it.
        code: https address; empty if it is this package.
        environment_changed: what was changed in the environments; empty if nothing.
        hardware: what the runs were made on, as declared; empty if nobody says.
        seconds: time of all runs, added up, as declared; 0 if nobody says.
        digests: SHA-256 of the files that were executed.
        policies: every policy that was executed, once.
        runs: those that came out as claimed, by track, method and seed.
        refused: what was refused, and why, one line a run.
        arithmetic: of the machine that executed them, see `haq_env.leaderboard.arithmetic`.
    """

    name: str
    title: str
    authors: tuple[str, ...]
    code: str
    environment_changed: str
    hardware: str
    seconds: float
    digests: dict[str, str]
    policies: tuple[Scored, ...]
    runs: tuple[VerifiedRun, ...]
    refused: tuple[str, ...] = ()
    arithmetic: str = ""
