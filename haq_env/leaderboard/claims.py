"""What is wrong with a submitted run before anything is executed."""

from __future__ import annotations

import math

import numpy as np

from haq_env.errors import InputError
from haq_env.leaderboard.submission import Claim
from haq_env.task import Task

COST_TOLERANCE = 1e-9  # relative: costs are sums of a table, and the sum may be in another order


def wrong_at_once(claim: Claim, task: Task) -> list[str]:
    """Say what is wrong with a run that the track's task alone tells; nothing if it is fine.

    Every policy must be one of the track and inside the budget, cost what was claimed, and the
    first one must be the uniform one.
    """
    for step, cost in zip(claim.outcome.steps, claim.costs, strict=True):
        where = f"the policy of evaluation {step.evaluation}"
        try:
            bits = step.bits
        except InputError as error:
            return [f"{where}: {error}"]
        if len(bits) != len(task.layers):
            return [
                f"{where} is for another network: it has {len(bits)} layers, and "
                f"{task.layers.network} has {len(task.layers)}"
            ]
        real = task.cost(bits)
        if not task.budget.fits(bits):
            return [
                f"{where} is past the budget: it costs {real:.9g}, and {task.budget.limit:.9g} "
                "is the limit"
            ]
        wrong = (task.space.clip(bits) != bits).any(axis=1)
        if wrong.any() and step.evaluation > 1:
            name = task.layers.names[int(np.argmax(wrong))]
            return [f"{where} gives layer {name!r} bits that the track does not allow"]
        if step.evaluation == 1 and not np.array_equal(bits, task.uniform()):
            return [f"{where} is not the uniform one that fits the budget"]
        if not math.isclose(real, cost, rel_tol=COST_TOLERANCE):
            return [f"{where} is claimed to cost {cost:.9g}, and costs {real:.9g}"]
    return []
