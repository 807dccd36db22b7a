"""Bit widths by integer programming: the exact multiple-choice knapsack over a sensitivity table.

Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", ICML 2021, section 3.4, write the
choice of bits as an integer linear program: one binary variable for each layer and pair of
widths, one pair a layer, least total sensitivity under the budget. Layers are taken to be
independent: the solution is exact for that model and not for the network, so it is measured like
any other policy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from haq_env.budget import ROUNDING
from haq_env.cost import Grid
from haq_env.errors import InputError
from haq_env.policy import MAX_BITS, Bits
from haq_env.search.history import History, begin
from haq_env.search.lagrangian import Choice, improved, prices
from haq_env.search.quiet import without_c_output
from haq_env.search.sensitivity import from_table
from haq_env.search.table import law, search_with_table
from haq_env.task import Task

_PAIRS = MAX_BITS * MAX_BITS
_SLACK = 1e3
_OBJECTIVE = 1e3  # HiGHS stops at an absolute gap of 1e-6: 1e-9 of an objective of this size


@dataclass(frozen=True, eq=False)
class Solution:
    """An optimal policy of the additive model, with its proof.

    Attributes:
        bits: int64 [L, 2].
        objective: its total sensitivity.
        bound: no policy inside the limit has a total below this.
        gap: (objective - bound) / |objective|, 0 up to rounding; 0 for an objective of 0.
        seconds: time the solver took.
    """

    bits: Bits
    objective: float
    bound: float
    gap: float
    seconds: float


def solve(
    sensitivity: Grid,
    costs: Grid,
    allowed: NDArray[np.bool_],
    limit: float,
    ties: Sequence[Sequence[int]] = (),
) -> Solution:
    """Find the policy of least total sensitivity inside the limit, and prove it (HiGHS).

    Args:
        sensitivity: float64 [L, 8, 8], ``[layer, w_bits - 1, a_bits - 1]``; infinite entries
            are never chosen.
        costs: float64 [L, 8, 8], in the unit of the limit.
        allowed: bool [L, 8, 8].
        limit: the largest total cost, without any constant part.
        ties: groups of layers that must have equal bits, such as the branches of a residual sum.

    Raises:
        InputError: shapes differ, tied layers have no pair in common, or no policy is inside the
            limit.
    """
    start = time.perf_counter()
    layers = len(sensitivity)
    for name, grid in (("sensitivity", sensitivity), ("costs", costs), ("allowed", allowed)):
        if np.shape(grid) != (layers, MAX_BITS, MAX_BITS):
            raise InputError(
                f"{name} must have the shape [layers, {MAX_BITS}, {MAX_BITS}] for {layers} layers, "
                f"not {list(np.shape(grid))}."
            )
    group = _groups(layers, ties)
    items = int(group.max()) + 1
    open_pairs = allowed & np.isfinite(sensitivity) & np.isfinite(costs)
    usable = np.ones((items, _PAIRS), dtype=bool)
    value, cost = np.zeros((items, _PAIRS)), np.zeros((items, _PAIRS))
    np.logical_and.at(usable, group, open_pairs.reshape(layers, _PAIRS))
    np.add.at(value, group, np.where(open_pairs, sensitivity, 0.0).reshape(layers, _PAIRS))
    np.add.at(cost, group, np.where(open_pairs, costs, 0.0).reshape(layers, _PAIRS))
    if not usable.any(axis=1).all():
        lost = np.flatnonzero(group == usable.any(axis=1).argmin()).tolist()
        raise InputError(f"layers {lost}: no pair of widths is allowed for (all of) them.")
    cheapest = np.where(usable, cost, np.inf).min(axis=1).sum()
    if cheapest > limit * (1 + ROUNDING):
        raise InputError(
            f"no policy fits the limit {limit:.6g}: the cheapest one costs {cheapest:.6g}."
        )
    chosen, bound = _optimum(value, cost, usable, limit)
    pairs = chosen[group]
    bits = np.stack([pairs // MAX_BITS + 1, pairs % MAX_BITS + 1], axis=1)
    objective = float(value[np.arange(items), chosen].sum())
    bound = min(bound, objective)  # the two differ by rounding where the proof is complete
    gap = (objective - bound) / abs(objective) if objective else 0.0
    return Solution(bits, objective, bound, gap, time.perf_counter() - start)


def _optimum(
    value: Grid, cost: Grid, usable: NDArray[np.bool_], limit: float
) -> tuple[Choice, float]:
    """Return the best pair of each item [items] and the proven bound on the total value."""
    items = np.arange(len(value))
    # From here on every item's least value and cost are 0: only differences are to be decided,
    # and the solver's absolute tolerances then mean the same whatever the units are.
    base = np.where(usable, cost, np.inf).min(axis=1)
    slack = max(0.0, limit - float(base.sum()))
    # a pair that does not fit beside the cheapest of all other items fits nowhere
    usable = usable & (cost - base[:, None] <= slack + ROUNDING * abs(limit))
    least = np.where(usable, value, np.inf).min(axis=1)
    v = np.where(usable, value - least[:, None], np.inf)
    c = np.where(usable, cost - base[:, None], np.inf)
    known, needless = _reduced(v, c, slack)
    open_pairs = usable & ~needless
    scale = _OBJECTIVE / (known or float(v[open_pairs].max()) or 1.0)
    # HiGHS keeps a row to 1e-7; with this right side that is 1e-10 of the slack
    c_scale = slack / _SLACK or 1.0
    outside: list[Choice] = []
    while True:
        chosen, bound = _program(v * scale, c / c_scale, open_pairs, slack / c_scale, outside)
        if cost[items, chosen].sum() <= limit * (1 + ROUNDING):
            return chosen, bound / scale + float(least.sum())
        # The solver's tolerance is not the budget's. A policy that is really outside is cut off,
        # which takes no feasible one away, so the optimum stays exact.
        outside.append(chosen)


def _program(
    v: Grid, c: Grid, open_pairs: NDArray[np.bool_], slack: float, outside: Sequence[Choice]
) -> tuple[Choice, float]:
    """Solve one integer program with HiGHS.

    Args:
        v: float64 [items, 64], what is minimised.
        c: likewise, what may sum up to the slack.
        open_pairs: bool [items, 64], one variable for each.
        slack: the right side of the budget's row.
        outside: int64 [items] each: solutions that must not come out ("no-good cuts").

    Returns:
        int64 [items], and the solver's bound on the minimum.
    """
    items = len(v)
    item, pair = np.nonzero(open_pairs)
    one_each = csr_array((np.ones(item.size), (item, np.arange(item.size))), (items, item.size))
    rows, upper = [one_each, csr_array(c[open_pairs][None])], [*np.ones(items), slack]
    for no_good in outside:  # at least one item differs
        rows.append(csr_array((pair == no_good[item])[None].astype(float)))
        upper.append(items - 1.0)
    lower = [*np.ones(items), *[-np.inf] * (len(upper) - items)]
    with without_c_output():
        result = milp(
            v[open_pairs],
            integrality=np.ones(item.size),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(vstack(rows), lower, upper),
            # presolve: one table of FIT took 400 s with it, and 0.3 s without
            options={"mip_rel_gap": 0.0, "presolve": False},
        )
    assert result.x is not None, result.message  # no cut takes the optimum away
    taken = result.x > 0.5
    chosen = np.empty(items, dtype=np.int64)
    chosen[item[taken]] = pair[taken]
    return chosen, float(result.mip_dual_bound)


def _reduced(v: Grid, c: Grid, slack: float) -> tuple[float, NDArray[np.bool_]]:
    """Find a good solution, and the pairs that no better one has, by a Lagrange multiplier.

    For any price p >= 0, sum_i min_j (v + p c) - p slack bounds every solution from below
    (Fisher, 1981). The bound with one pair forced differs in one term; where it lies above the
    value of a known solution, the pair is needless. Of 53 x 64 pairs some hundred are left.

    Args:
        v: float64 [items, 64], not negative, infinite for pairs that are shut.
        c: likewise, with a zero in each row.
        slack: what may be spent.

    Returns:
        Value of the known solution, and bool [items, 64].
    """
    rows = np.arange(len(v))
    affordable = np.where(np.isfinite(c), c, 0.0)  # where c is infinite v is, at any price
    known = float(v[rows, c.argmin(axis=1)].sum())
    needless = np.zeros(v.shape, dtype=bool)
    for price in prices(v, c, slack):
        reduced = v + price * affordable
        chosen = reduced.argmin(axis=1)
        if c[rows, chosen].sum() <= slack:
            known = min(known, float(v[rows, improved(v, c, slack, chosen)].sum()))
        least = reduced.min(axis=1).sum()
        forced = least - price * slack + reduced - reduced.min(axis=1)[:, None]
        # rounding is relative to the terms of the bound, which may cancel to nothing
        needless |= forced > known * (1 + 1e-9) + 1e-12 * (least + price * slack)
    return known, needless


def _groups(layers: int, ties: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Number the groups of tied layers in order of their first layer, int64 [L]."""
    leader = np.arange(layers)
    for tied in ties:
        strange = [layer for layer in tied if not 0 <= layer < layers]
        if strange:
            raise InputError(f"tied layers must be 0 to {layers - 1}, not {strange[0]}.")
        members = np.isin(leader, leader[list(tied)])
        leader[members] = leader[members].min(initial=layers)
    return np.asarray(np.unique(leader, return_inverse=True)[1], dtype=np.int64)


# -- searches -----------------------------------------------------------------------------------


def least_sensitive(task: Task, sensitivity: Grid) -> Bits:
    """Return the optimal policy [L, 2] of a task for a table [L, 8, 8]."""
    budget = task.budget
    grid = budget.table.grid(budget.metric)
    return solve(sensitivity, grid, task.space.pairs(), budget.for_layers).bits


def ilp_law(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Integer program over 4^-bits, the same for every tensor: no images and no gradients."""
    history = begin(task, evaluations, history)
    if evaluations == 1:
        return history
    return search_with_table(task, evaluations, seed, law(task), least_sensitive, history)


def ilp_kl(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Integer program over the divergence of the output, one side of one layer quantized."""
    return from_table(task, evaluations, seed, "output_kl", least_sensitive, history)


def ilp_fit(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Integer program over FIT: Fisher information times quantization error."""
    return from_table(task, evaluations, seed, "fit", least_sensitive, history)


def ilp_hawq_v2(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Integer program over HAWQ-V2's perturbation: mean Hessian trace times squared error."""
    return from_table(task, evaluations, seed, "hawq_v2", least_sensitive, history)


def ilp_hawq(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Integer program over HAWQ's perturbation: top Hessian eigenvalue times squared error."""
    return from_table(task, evaluations, seed, "hawq", least_sensitive, history)
