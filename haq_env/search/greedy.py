"""Greedy searches: by a sensitivity table, and by measured accuracy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from haq_env.budget import ROUNDING
from haq_env.cost import Grid
from haq_env.errors import InputError
from haq_env.policy import MAX_BITS, Bits
from haq_env.search.history import History, begin, measure, measure_all
from haq_env.search.mutation import mutate
from haq_env.search.sensitivity import from_table
from haq_env.task import Task

_WIDTHS = np.arange(MAX_BITS)


def step_down(
    sensitivity: Grid, costs: Grid, allowed: NDArray[np.bool_], limit: float, start: Bits
) -> Bits:
    """Lower widths by least added sensitivity for each unit of saved cost, then fill up.

    A move takes one layer to any cheaper pair of widths that are not above its present ones, so
    that a plateau of the cost is crossed in one move. What is left below the limit at the end
    goes to the moves of most sensitivity removed for each unit of cost, as long as one fits.

    Args:
        sensitivity: float64 [L, 8, 8], ``[layer, w_bits - 1, a_bits - 1]``.
        costs: float64 [L, 8, 8], in the unit of the limit.
        allowed: bool [L, 8, 8].
        limit: the largest total cost, without any constant part.
        start: the widest policy, int64 [L, 2], allowed.

    Returns:
        int64 [L, 2], inside the limit.

    Raises:
        InputError: lowering ends above the limit; with costs that are monotone this means that
            nothing fits.
    """
    rows = np.arange(len(start))
    most = limit * (1 + ROUNDING)
    pair = start - 1
    open_pairs = allowed & np.isfinite(sensitivity)
    with np.errstate(divide="ignore", invalid="ignore"):
        while True:
            saved, added = _differences(costs, sensitivity, pair)
            if costs[rows, pair[:, 0], pair[:, 1]].sum() <= most:
                break
            below = (_WIDTHS[:, None] <= pair[:, 0, None, None]) & (
                pair[:, 1, None, None] >= _WIDTHS
            )
            price = np.where(open_pairs & below & (saved > 0), added / saved, np.inf)
            layer, w, a = np.unravel_index(price.argmin(), price.shape)
            if not np.isfinite(price[layer, w, a]):
                raise InputError(f"no policy was found inside the limit {limit:.6g}.")
            pair[layer] = w, a
        while True:
            saved, added = _differences(costs, sensitivity, pair)
            slack = most - costs[rows, pair[:, 0], pair[:, 1]].sum()
            better = open_pairs & (added < 0) & (-saved <= slack)
            # what removes sensitivity and costs nothing, or less, comes first
            worth = np.where(saved < 0, added / saved, np.inf)
            worth = np.where(better, worth, -np.inf)
            layer, w, a = np.unravel_index(worth.argmax(), worth.shape)
            if not better[layer, w, a]:
                return np.asarray(pair + 1)
            pair[layer] = w, a


def _differences(costs: Grid, sensitivity: Grid, pair: Bits) -> tuple[Grid, Grid]:
    """Cost saved and sensitivity added by moving one layer to each pair, [L, 8, 8]."""
    rows = np.arange(len(pair))
    here = rows, pair[:, 0], pair[:, 1]
    saved = costs[here][:, None, None] - costs
    return saved, sensitivity - sensitivity[here][:, None, None]


def greedy_sensitivity(
    task: Task, evaluations: int, seed: int, history: History | None = None
) -> History:
    """Measure what `step_down` finds for the output divergences, and for variations of them."""
    return from_table(task, evaluations, seed, "output_kl", _least_ratio, history)


def _least_ratio(task: Task, sensitivity: Grid) -> Bits:
    budget = task.budget
    grid, pairs = budget.table.grid(budget.metric), task.space.pairs()
    try:
        return step_down(sensitivity, grid, pairs, budget.for_layers, task.space.highest)
    except InputError:  # costs that are not monotone can end in a dead end above the limit
        return task.project(task.space.lowest)


def greedy(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Step down from the highest bits by measured accuracy, as NetAdapt does.

    Yang et al., "NetAdapt", ECCV 2018: in each round every layer proposes the smallest reduction
    that saves the round's share of the cost, all proposals are measured, and the best is kept.
    Two things differ. A proposal is measured as what the projection makes of it, since no
    accuracy outside the budget may count. And layers propose in random groups, about the square
    root of the evaluations of them, so that the rounds, all of equal share, fit into any number
    of evaluations. What is left over tries mutations of the best policy.
    """
    rng = np.random.default_rng(seed)
    history = begin(task, evaluations, history)
    steps = np.array(task.space.steps)
    left = evaluations - 1
    count = min(len(np.unique(steps[:, 0])), max(1, math.isqrt(left)))
    rounds = left // count
    here = task.space.highest
    share = (task.cost(here) - task.budget.limit) / max(1, rounds)
    for _ in range(rounds if share > 0 else 0):
        target = task.cost(here) - share
        groups = np.array_split(rng.permutation(np.unique(steps[:, 0])), count)
        proposals = [
            _reduced(task, here, steps[np.isin(steps[:, 0], group)], target) for group in groups
        ]
        trials = measure_all(task, proposals, history)
        # one that misses its target is kept only if all do
        worth = [
            (task.cost(proposal) <= target, trial.accuracy)
            for proposal, trial in zip(proposals, trials, strict=True)
        ]
        here = proposals[worth.index(max(worth))]
    while len(history) < evaluations:
        measure(task, mutate(task, history.best.bits, rng), history)
    return history


def _reduced(task: Task, bits: Bits, steps: NDArray[np.int64], target: float) -> Bits:
    """Take bits from some sides, the widest first, until the cost meets the target."""
    bits, lowest = bits.copy(), task.space.lowest
    layer, side = steps.T
    while task.cost(bits) > target:
        spare = np.where(bits[layer, side] > lowest[layer, side], bits[layer, side], 0)
        widest = int(spare.argmax())
        if not spare[widest]:
            break
        bits[layer[widest], side[widest]] -= 1
    return bits
