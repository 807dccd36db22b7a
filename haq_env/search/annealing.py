"""Simulated annealing (Kirkpatrick et al., 1983)."""

from __future__ import annotations

import numpy as np

from haq_env.search.history import History, begin, measure
from haq_env.search.mutation import mutate
from haq_env.task import Task

HOTTEST, COLDEST = 2.0, 0.01  # temperatures, in points of accuracy


def annealing(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Walk from the uniform policy; worse steps are taken ever more rarely."""
    rng = np.random.default_rng(seed)
    history = begin(task, evaluations, history)
    here = history[0]
    for step in range(1, evaluations):
        heat = HOTTEST * (COLDEST / HOTTEST) ** (step / max(1, evaluations - 1))
        there = measure(task, mutate(task, here.bits, rng, rate=0.02), history)
        if rng.random() < np.exp(min(0.0, there.accuracy - here.accuracy) / heat):
            here = there
    return history
