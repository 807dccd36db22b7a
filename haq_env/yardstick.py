"""A task of full size without a network to train: what a search finds, held against the optimum.

Costs are those of a simulator, the objective adds up over tensors, and so an integer program knows
the best policy. It says nothing about noise and interactions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from haq_env.budget import Budget
from haq_env.errors import InputError
from haq_env.evaluation.additive import AdditiveEvaluator
from haq_env.hardware.load import load_hardware
from haq_env.layers import LayerTable
from haq_env.search.ilp import least_sensitive
from haq_env.space import BitSpace
from haq_env.task import Task

SPREAD = 1.5  # standard deviation of the logarithm of the tensors' scales


def yardstick(instance: int, hardware: str = "bismo-cloud", budget: float | str = "w4a4") -> Task:
    """Make one instance: MobileNet-V2 at 224 px, 53 layers, random scales.

    Args:
        instance: 0 or above; decides the scales and nothing else.
        hardware: name of the cost model.
        budget: as in `make_task`.
    """
    if instance < 0:
        raise InputError(f"instance must be 0 or more, not {instance}.")
    layers = _mobilenet_v2()
    costs = load_hardware(hardware).cost_table(layers)
    space = BitSpace.of(layers)
    rng = np.random.default_rng(instance)
    scales = np.exp(SPREAD * rng.standard_normal((len(layers), 2)))
    reference = float((scales * 0.25 ** space.uniform(4, 4)).sum())
    settings = {"network": layers.network, "hardware": costs.hardware, "yardstick": instance}
    return Task(
        layers,
        costs,
        Budget.of(costs, space, budget),
        space,
        AdditiveEvaluator(scales, reference),
        settings,
    )


def optimum(task: Task) -> float:
    """Return the highest accuracy that any policy of a yardstick can have, with proof (HiGHS)."""
    evaluator = task.evaluator
    if not isinstance(evaluator, AdditiveEvaluator):
        raise InputError("only the yardstick's objective has a computable optimum.")
    return evaluator.evaluate(least_sensitive(task, evaluator.pairs())).accuracy


@lru_cache(maxsize=1)
def _mobilenet_v2() -> LayerTable:
    from haq_env.networks import load_network
    from haq_env.networks.trace import trace

    return trace(load_network("mobilenet_v2"), (3, 224, 224), name="mobilenet_v2")
