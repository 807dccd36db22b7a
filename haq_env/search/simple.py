"""Searches without memory: uniform bits and random policies."""

from __future__ import annotations

import numpy as np

from haq_env.search.history import History, measure
from haq_env.task import Task


def uniform(task: Task, evaluations: int, seed: int) -> History:
    """Try uniform policies: first the one that fits with w = a, then all other pairs.

    Pairs are tried from the most expensive one that fits downwards; there are at most 64.
    """
    del seed  # nothing is random here
    history = History()
    measure(task, task.uniform(), history)
    low, high = task.space.bits
    pairs = [task.space.uniform(w, a) for w in range(low, high + 1) for a in range(low, high + 1)]
    fitting = [policy for policy in pairs if task.budget.fits(policy)]
    fitting.sort(key=lambda policy: -task.cost(policy))
    for policy in fitting[: evaluations - 1]:
        measure(task, policy, history)
    return history


def random(task: Task, evaluations: int, seed: int) -> History:
    """Draw every width independently and uniformly, and project onto the budget."""
    rng = np.random.default_rng(seed)
    history = History()
    measure(task, task.uniform(), history)
    for policy in task.space.random(rng, evaluations - 1):
        measure(task, policy, history)
    return history
