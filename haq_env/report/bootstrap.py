"""Stratified percentile bootstrap: intervals of a statistic by resampling seeds within each task.

Generators are passed in and never global. Percentile intervals of few runs are too narrow.
Simulated with normal scores, 95 % intervals of the mean cover the truth in 89 % of all cases with
one task of 10 runs, in 83 % with one of 5 runs and in 92 % with five tasks of 10 runs; those of
the IQM in 92 %, 88 % and 93 %. With five tasks of 2 runs it is 78 % for both, for two runs that are
drawn anew vary half as much as runs do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from haq_env.errors import InputError
from haq_env.report.scores import Array, Scores, as_tasks, iqm_curve

Seed = int | np.random.Generator
Statistic = Callable[[Sequence[Array]], float]
CurveStatistic = Callable[[Sequence[Array]], Array]

CONFIDENCE, REPETITIONS = 0.95, 2000


def bootstrap_interval(
    scores: Scores,
    statistic: Statistic,
    confidence: float = CONFIDENCE,
    repetitions: int = REPETITIONS,
    seed: Seed = 0,
) -> tuple[float, float]:
    """Compute a percentile interval by resampling the seeds within each task.

    Args:
        scores: [seeds] of each task.
        statistic: takes a list like `scores`, one array for each task.
        confidence: share of the resampled statistics inside the interval, in (0, 1).
        repetitions: how often everything is resampled.
        seed: of the resampling, or the generator itself.

    Returns:
        Both ends; NaN if a task has a single run, which would seem to have no spread at all.

    Raises:
        InputError: scores are unusable, or the confidence or the repetitions are out of range.
    """
    tasks = as_tasks(scores, 1)
    low, high = percentiles(
        [tasks], lambda drawn: statistic(drawn[0]), confidence, repetitions, seed
    )
    return float(low), float(high)


def bootstrap_band(
    curves: Scores,
    statistic: CurveStatistic = iqm_curve,
    confidence: float = CONFIDENCE,
    repetitions: int = REPETITIONS,
    seed: Seed = 0,
) -> tuple[Array, Array]:
    """Compute `bootstrap_interval` at every evaluation; whole runs are resampled.

    Args:
        curves: [seeds, evaluations] of each task.
        statistic: takes a list like `curves`, returns [evaluations].
        confidence: at each evaluation by itself, not of the band as a whole.
        repetitions: as in `bootstrap_interval`.
        seed: likewise.

    Returns:
        Both ends, [evaluations] each.

    Raises:
        InputError: as in `bootstrap_interval`.
    """
    tasks = as_tasks(curves, 2)
    return percentiles([tasks], lambda drawn: statistic(drawn[0]), confidence, repetitions, seed)


def percentiles(
    sides: Sequence[Sequence[Array]],
    statistic: Callable[[Sequence[Sequence[Array]]], float | Array],
    confidence: float,
    repetitions: int,
    seed: Seed,
) -> tuple[Array, Array]:
    """Resample the runs of each task of each side, and return percentiles of a statistic.

    Args:
        sides: what is compared, resampled independently; for each side one array for each task,
            as `as_tasks` returns them.
        statistic: takes a list like `sides`, returns a number or an array.
        confidence: as in `bootstrap_interval`.
        repetitions: likewise.
        seed: likewise.

    Returns:
        Both ends, of the statistic's shape; NaN if a task has a single run.

    Raises:
        InputError: the confidence or the repetitions are out of range.
    """
    if not 0 < confidence < 1:
        raise InputError(f"the confidence must lie between 0 and 1, not {confidence}.")
    if repetitions < 1:
        raise InputError(f"repetitions must be 1 or more, not {repetitions}.")
    if any(len(task) == 1 for side in sides for task in side):
        unknown = np.full(np.shape(statistic(sides)), np.nan)
        return unknown, unknown
    rng = np.random.default_rng(seed)
    picks = [  # [repetitions, seeds] for each task of each side
        [rng.integers(len(task), size=(repetitions, len(task))) for task in side] for side in sides
    ]
    drawn: list[float | Array] = [
        statistic(
            [
                [task[rows[number]] for task, rows in zip(side, chosen, strict=True)]
                for side, chosen in zip(sides, picks, strict=True)
            ]
        )
        for number in range(repetitions)
    ]
    low, high = np.quantile(np.array(drawn), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
