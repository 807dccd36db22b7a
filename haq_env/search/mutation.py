"""A step from one policy to a near one, for searches that walk."""

from __future__ import annotations

import numpy as np

from haq_env.policy import Bits
from haq_env.task import Task

RATE = 0.05  # share of the widths that are moved


def mutate(task: Task, bits: Bits, rng: np.random.Generator, rate: float = RATE) -> Bits:
    """Try to move some widths, at least one, by one or two; the space's limits hold.

    Args:
        task: the problem.
        bits: int64 [L, 2], which stays as it is.
        rng: chooses the widths and the moves.
        rate: probability in [0, 1] that a width is moved.

    Returns:
        int64 [L, 2], which need not fit the budget.
    """
    steps = np.array(task.space.steps)
    chosen = rng.random(len(steps)) < rate
    chosen[rng.integers(len(steps))] = True
    moved = bits.copy()
    size = rng.choice([-2, -1, 1, 2], size=len(steps))
    layer, side = steps[chosen].T
    moved[layer, side] += size[chosen]
    return task.space.clip(moved)
