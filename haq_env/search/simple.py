"""Searches without memory: uniform bits and random policies."""

from __future__ import annotations

import numpy as np

from haq_env.search.history import History, begin, measure, measure_all
from haq_env.task import Task


def uniform(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Try uniform policies: first the best that needs no search, then all others that fit.

    They are tried from the most expensive one downwards, none of them twice; there are at most
    64, so some evaluations may be left over.
    """
    del seed  # nothing is random here
    history = begin(task, evaluations, history)
    low, high = task.space.bits
    widths = range(low, high + 1)
    pairs = [task.space.uniform(w, a) for w in widths for a in widths]
    fitting = {p.tobytes(): p for p in pairs if task.budget.fits(p)}  # pinned sides make doubles
    fitting.pop(task.uniform().tobytes(), None)
    for policy in sorted(fitting.values(), key=task.cost, reverse=True)[: evaluations - 1]:
        measure(task, policy, history, project=False)
    return history


def random(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Draw every width independently and uniformly, and project onto the budget."""
    rng = np.random.default_rng(seed)
    history = begin(task, evaluations, history)
    measure_all(task, list(task.space.random(rng, evaluations - 1)), history)
    return history
