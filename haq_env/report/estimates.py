"""Estimates from few runs with their intervals: who is better how often, and by how much.

The definitions are those of rliable (Agarwal et al., "Deep Reinforcement Learning at the Edge of
the Statistical Precipice", 2021). What scores look like, and which are refused, is said in
`haq_env.report.scores`; how far intervals are to be trusted, in `haq_env.report.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from haq_env.errors import InputError
from haq_env.report.bootstrap import (
    CONFIDENCE,
    REPETITIONS,
    Seed,
    Statistic,
    bootstrap_band,
    bootstrap_interval,
    percentiles,
)
from haq_env.report.scores import Array, Scores, as_tasks, iqm, mean


@dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
        value: of the runs as they are.
        low: lower end of the interval; NaN where a task has a single run, which says nothing of
            its spread.
        high: upper end, likewise.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Profile:
    """Which share of the runs reaches a score.

    Attributes:
        taus: the scores, float64 [T].
        share: of the runs with at least that score, 0 to 1, [T].
        low: lower ends of the intervals at each score, [T]; NaN as in `Estimate`.
        high: upper ends, [T].
    """

    taus: Array
    share: Array
    low: Array
    high: Array


def estimate(
    scores: Scores,
    statistic: Statistic = iqm,
    confidence: float = CONFIDENCE,
    repetitions: int = REPETITIONS,
    seed: Seed = 0,
) -> Estimate:
    """Return a statistic with its `bootstrap_interval`, whose arguments and errors these are."""
    interval = bootstrap_interval(scores, statistic, confidence, repetitions, seed)
    return Estimate(statistic(as_tasks(scores, 1)), *interval)


def probability_of_improvement(
    x: Scores,
    y: Scores,
    confidence: float = CONFIDENCE,
    repetitions: int = REPETITIONS,
    seed: Seed = 0,
) -> Estimate:
    """Estimate how probable it is that a run of X scores higher than one of Y on the same task.

    In each task, the Mann-Whitney U over the number of pairs: the share of all pairs of a run of X
    and one of Y that X wins, ties counting one half. Tasks are averaged with equal weights.

    Args:
        x: [seeds] of each task; higher is better.
        y: likewise, the same tasks in the same order, with any numbers of seeds.
        confidence: as in `bootstrap_interval`; X and Y are resampled independently.
        repetitions: likewise.
        seed: likewise.

    Raises:
        InputError: as in `bootstrap_interval`, or X and Y have different numbers of tasks.
    """
    ours, theirs = as_tasks(x, 1), as_tasks(y, 1)
    if len(ours) != len(theirs):
        raise InputError(
            f"both sides must have run the same tasks, not {len(ours)} and {len(theirs)} tasks."
        )

    def statistic(sides: Sequence[Sequence[Array]]) -> float:
        pairs = zip(*sides, strict=True)
        # The sign of the difference is 1, 0 or -1 for a win, a tie and a loss: 1, 1/2 and 0.
        return float(np.mean([np.sign(a[:, None] - b).mean() / 2 + 0.5 for a, b in pairs]))

    low, high = percentiles([ours, theirs], statistic, confidence, repetitions, seed)
    return Estimate(statistic([ours, theirs]), float(low), float(high))


def performance_profile(
    scores: Scores,
    taus: Array,
    confidence: float = CONFIDENCE,
    repetitions: int = REPETITIONS,
    seed: Seed = 0,
) -> Profile:
    """Compute which share of all runs, pooled over tasks, has a score of tau or more.

    Args:
        scores: [seeds] of each task; higher is better.
        taus: the scores to ask for, float64 [T], T >= 1.
        confidence: at each tau by itself; see `bootstrap_interval`.
        repetitions: as in `bootstrap_interval`.
        seed: likewise.

    Raises:
        InputError: as in `bootstrap_interval`, or no tau, or one that is not finite.
    """
    taus = as_tasks([np.asarray(taus)], 1)[0]
    reached = [(task[:, None] >= taus).astype(np.float64) for task in as_tasks(scores, 1)]

    def share(tasks: Sequence[Array]) -> Array:
        found: Array = np.concatenate(tasks).mean(axis=0)
        return found

    low, high = bootstrap_band(reached, share, confidence, repetitions, seed)
    return Profile(taus, share(reached), low, high)


def mean_regret(
    scores: Scores,
    best: Sequence[float],
    confidence: float = CONFIDENCE,
    repetitions: int = REPETITIONS,
    seed: Seed = 0,
) -> Estimate:
    """Estimate how far runs stay below the best: the mean of best - score, pooled over tasks.

    It is rliable's optimality gap, but a run above the best counts as negative instead of zero,
    which shows a best that is none.

    Args:
        scores: [seeds] of each task; higher is better.
        best: what can be reached in each task.
        confidence: as in `bootstrap_interval`.
        repetitions: likewise.
        seed: likewise.

    Raises:
        InputError: as in `bootstrap_interval`, or not one finite best for each task.
    """
    tasks, known = as_tasks(scores, 1), as_tasks([np.asarray(best)], 1)[0]
    if len(known) != len(tasks):
        raise InputError(f"{len(tasks)} tasks need a best score each, not {len(known)} in all.")
    regrets = [top - task for top, task in zip(known, tasks, strict=True)]
    return estimate(regrets, mean, confidence, repetitions, seed)
