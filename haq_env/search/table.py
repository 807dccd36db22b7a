"""Tables of how much each layer suffers at each width, which add up to a model of a policy.

Weights and activations are taken apart and added; so are layers. That is a model: what the network
loses is not additive, and a policy that a table recommends has to be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from haq_env.cost import Grid
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits, as_bits
from haq_env.search.charge import Charge
from haq_env.search.history import History, measure_all
from haq_env.task import Task

LAW = "law"
SPREAD = 0.1  # of the logarithm: tables are varied by so much for the policies after the first
WIDEST, TRIES = 2.0, 10


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """An additive model of what quantization costs.

    Attributes:
        method: a key of `haq_env.search.sensitivity.METHODS`, or ``"law"``.
        table: float64 [L, 2, 8], ``[layer, side, bits - 1]``: not negative, never rising with
            bits, infinite where the space does not allow a width. The unit is the method's:
            nats for ``output_kl``, ``loss`` and, to second order and up to a common factor, the
            others.
        charge: what it took.
    """

    method: str
    table: Grid
    charge: Charge

    def pairs(self) -> Grid:
        """Return the sum of both sides, float64 [L, 8, 8], ``[layer, w_bits - 1, a_bits - 1]``."""
        return np.asarray(self.table[:, WEIGHT, :, None] + self.table[:, ACTIVATION, None, :])

    def predict(self, bits: Bits) -> Grid:
        """Return the total of policies [..., L, 2], float64 [...]; small is good."""
        bits = as_bits(bits, len(self.table))
        layers, sides = np.arange(len(self.table))[:, None], np.arange(2)
        return np.asarray(self.table[layers, sides, bits - 1].sum(axis=(-2, -1)))


def law(task: Task) -> Sensitivity:
    """Return the table of nothing measured: 4^-bits for every tensor, weights or activations.

    The squared error of a uniform quantizer falls by four with every bit; that tensors matter
    alike is the assumption.
    """
    table = np.where(task.space.allowed, 0.25 ** np.arange(1.0, MAX_BITS + 1), np.inf)
    return Sensitivity(LAW, table, Charge(0.0, 0.0))


def search_with_table(
    task: Task,
    evaluations: int,
    seed: int,
    found: Sensitivity,
    choose: Callable[[Task, Grid], Bits],
    history: History,
) -> History:
    """Measure the policy that a table recommends, then variations of it.

    A variation comes from the table with each side of each layer multiplied by a random factor,
    ten percent up or down; where that leads to a policy that has been tried, the factors spread
    wider.

    Args:
        task: the problem.
        evaluations: policies to measure, those in the history included.
        seed: of the variations.
        found: the table.
        choose: (task, table [L, 8, 8]) to a policy [L, 2] inside the budget.
        history: with the uniform policy, the first.
    """
    if history.charge is None:  # else the search goes on, and has paid for its table already
        history.charge = found.charge
    rng = np.random.default_rng(seed)
    tried, spread = {task.uniform().tobytes()}, SPREAD
    bits = task.project(choose(task, found.pairs()))
    wanted = [bits]
    while len(history) + len(wanted) < evaluations:
        tried.add(bits.tobytes())
        for _ in range(TRIES):  # where a table has many ties, one policy may come again and again
            factors = np.exp(spread * rng.uniform(-1, 1, found.table.shape[:2]))[:, :, None]
            varied = Sensitivity(found.method, found.table * factors, found.charge)
            bits = task.project(choose(task, varied.pairs()))
            if bits.tobytes() not in tried:
                break
            spread = min(WIDEST, spread * 1.2)
        wanted.append(bits)
    measure_all(task, wanted, history)
    return history
