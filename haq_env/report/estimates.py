"""Estimates from few runs: interquartile mean, bootstrap intervals, who is better how often.

The definitions are those of rliable (Agarwal et al., "Deep Reinforcement Learning at the Edge of
the Statistical Precipice", 2021), with generators that are passed in and never global.

Scores come as float64 [tasks, seeds], or as a list with one array [seeds] for each task where
their numbers differ; one array [seeds] is one task. Curves have one more axis: [seeds,
evaluations] for each task. Everything raises `InputError` if there is no task, a task without
runs, a number that is not finite, or curves of different lengths.

Percentile intervals of few runs are too narrow. Simulated with normal scores, 95 % intervals of the
mean cover the truth in 89 % of all cases with one task of 10 runs, in 83 % with one of 5 runs and
in 92 % with five tasks of 10 runs; those of the IQM in 92 %, 88 % and 93 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError

Array = NDArray[np.float64]
Scores = Array | Sequence[Array]
Seed = int | np.random.Generator
Statistic = Callable[[Sequence[Array]], float]
CurveStatistic = Callable[[Sequence[Array]], Array]

CONFIDENCE, REPETITIONS = 0.95, 2000


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


def iqm(scores: Scores) -> float:
    """Return the interquartile mean of all runs, pooled over tasks.

    As `scipy.stats.trim_mean` with 0.25 and rliable: of n sorted runs, the floor(n / 4) lowest and
    as many of the highest are left out, and the others are averaged with equal weights. No run gets
    a fractional weight: of five runs three count, of three all.
    """
    return float(_trimmed(np.concatenate(_tasks(scores, 1))))


def iqm_curve(curves: Scores) -> Array:
    """Return the `iqm` at every evaluation: [seeds, evaluations] of each task to [evaluations]."""
    return _trimmed(np.concatenate(_tasks(curves, 2)))


def mean(scores: Scores) -> float:
    """Return the mean of all runs, pooled over tasks."""
    return float(np.concatenate(_tasks(scores, 1)).mean())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else np.nan
    return float(array.mean()), float(error)


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
        InputError: as said above, or the confidence or the repetitions are out of range.
    """
    tasks = _tasks(scores, 1)
    low, high = _bootstrap(
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
    tasks = _tasks(curves, 2)
    return _bootstrap([tasks], lambda drawn: statistic(drawn[0]), confidence, repetitions, seed)


def estimate(
    scores: Scores,
    statistic: Statistic = iqm,
    confidence: float = CONFIDENCE,
    repetitions: int = REPETITIONS,
    seed: Seed = 0,
) -> Estimate:
    """Return a statistic with its `bootstrap_interval`, whose arguments and errors these are."""
    interval = bootstrap_interval(scores, statistic, confidence, repetitions, seed)
    return Estimate(statistic(_tasks(scores, 1)), *interval)


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
    ours, theirs = _tasks(x, 1), _tasks(y, 1)
    if len(ours) != len(theirs):
        raise InputError(
            f"both sides must have run the same tasks, not {len(ours)} and {len(theirs)} tasks."
        )

    def statistic(sides: Sequence[Sequence[Array]]) -> float:
        pairs = zip(*sides, strict=True)
        # The sign of the difference is 1, 0 or -1 for a win, a tie and a loss: 1, 1/2 and 0.
        return float(np.mean([np.sign(a[:, None] - b).mean() / 2 + 0.5 for a, b in pairs]))

    low, high = _bootstrap([ours, theirs], statistic, confidence, repetitions, seed)
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
    taus = _tasks([np.asarray(taus)], 1)[0]
    reached = [(task[:, None] >= taus).astype(np.float64) for task in _tasks(scores, 1)]

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
    tasks, known = _tasks(scores, 1), _tasks([np.asarray(best)], 1)[0]
    if len(known) != len(tasks):
        raise InputError(f"{len(tasks)} tasks need a best score each, not {len(known)} in all.")
    regrets = [top - task for top, task in zip(known, tasks, strict=True)]
    return estimate(regrets, mean, confidence, repetitions, seed)


def evaluations_to_reach(curves: Array, threshold: float | Array) -> Array:
    """Find the first evaluation of each run whose score is the threshold or more.

    Args:
        curves: best score so far, float64 [runs, evaluations]; higher is better.
        threshold: one for all runs, or [runs].

    Returns:
        float64 [runs]: 1 for the first evaluation; infinite for a run that never got there.

    Raises:
        InputError: as said above, or not one finite threshold for each run.
    """
    rows = np.concatenate(_tasks(curves, 2))
    levels = np.asarray(threshold, dtype=np.float64)
    if not np.isfinite(levels).all() or levels.shape not in ((), (len(rows),)):
        raise InputError("the threshold must be one finite number, or one for each run.")
    reached = rows >= levels.reshape(-1, 1)
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


def _trimmed(runs: Array) -> Array:
    cut = len(runs) // 4
    middle = np.sort(runs, axis=0)[cut : len(runs) - cut]
    found: Array = middle.mean(axis=0)
    return found


def _tasks(scores: Scores, axes: int) -> list[Array]:
    """Check scores (1 axis within a task) or curves (2), and return one array for each task."""
    try:
        tasks = [np.asarray(task, dtype=np.float64) for task in scores]
        if tasks and all(task.ndim == axes - 1 for task in tasks):  # a single task
            tasks = [np.stack(tasks)]
    except (TypeError, ValueError) as error:
        lengths = "" if axes == 1 else ", and all curves must have as many evaluations"
        raise InputError(f"every task needs an array of numbers{lengths}.") from error
    if not tasks:
        raise InputError("there are no scores.")
    for number, task in enumerate(tasks):
        if task.ndim != axes:
            shape = "[seeds]" if axes == 1 else "[seeds, evaluations]"
            raise InputError(f"task {number} must have the axes {shape}, not {task.ndim} axes.")
        if not task.size:
            raise InputError(f"task {number} has no runs, or runs without evaluations.")
        if not np.isfinite(task).all():
            raise InputError(f"task {number} has a score that is not a finite number.")
    if axes == 2 and len({task.shape[1] for task in tasks}) > 1:
        raise InputError("all curves must have as many evaluations.")
    return tasks


def _bootstrap(
    sides: Sequence[Sequence[Array]],
    statistic: Callable[[Sequence[Sequence[Array]]], float | Array],
    confidence: float,
    repetitions: int,
    seed: Seed,
) -> tuple[Array, Array]:
    """Resample the runs of each task of each side, and return percentiles of the statistic."""
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
