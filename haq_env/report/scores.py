"""Scores of runs, task by task, and what is read off them: interquartile mean, mean, first success.

Scores come as float64 [tasks, seeds], or as a list with one array [seeds] for each task where
their numbers differ; one array [seeds] is one task. Curves have one more axis: [seeds,
evaluations] for each task. What takes them raises `InputError` if there is no task, a task without
runs, a number that is not finite, or curves of different lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError

Array = NDArray[np.float64]
Scores = Array | Sequence[Array]


def as_tasks(scores: Scores, axes: int) -> list[Array]:
    """Check scores (1 axis within a task) or curves (2), and return one array for each task.

    Raises:
        InputError: as said above.
    """
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


def iqm(scores: Scores) -> float:
    """Return the interquartile mean of all runs, pooled over tasks.

    As `scipy.stats.trim_mean` with 0.25 and rliable: of n sorted runs, the floor(n / 4) lowest and
    as many of the highest are left out, and the others are averaged with equal weights. No run gets
    a fractional weight: of five runs three count, of three all.
    """
    return float(_trimmed(np.concatenate(as_tasks(scores, 1))))


def iqm_curve(curves: Scores) -> Array:
    """Return the `iqm` at every evaluation: [seeds, evaluations] of each task to [evaluations]."""
    return _trimmed(np.concatenate(as_tasks(curves, 2)))


def mean(scores: Scores) -> float:
    """Return the mean of all runs, pooled over tasks."""
    return float(np.concatenate(as_tasks(scores, 1)).mean())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else np.nan
    return float(array.mean()), float(error)


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
    rows = np.concatenate(as_tasks(curves, 2))
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
