"""Near-optimal allocation of bits by one price for the cost (Lagrangian relaxation).

Every layer takes the pair of widths that is best at a common price per unit of cost; bisection
finds the price at which the budget is just kept (Shoham and Gersho, 1988; Fisher, 1981). What is
left of the budget goes to single changes. It takes a millisecond where the exact program takes a
tenth of a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haq_env.budget import ROUNDING, Budget
from haq_env.cost import Grid
from haq_env.errors import InputError
from haq_env.policy import MAX_BITS, Bits

_DEAREST = 1e300
_CHEAPEST = 1e-250  # halved as often as below it is still no denormal number
_HALVINGS = 60
HALF = ROUNDING / 2  # of what the budget forgives, so that free bits are taken

Choice = NDArray[np.int64]


def allocate(harm: Grid, budget: Budget) -> Bits:
    """Choose bits of little total harm inside a budget.

    Args:
        harm: float64 [L, 8, 8], ``[layer, w_bits - 1, a_bits - 1]``; not negative.
        budget: the limit; widths that its space does not allow are not chosen.

    Returns:
        int64 [L, 2]. Its cost is inside the budget, and no single change that still fits would
        lower the harm.

    Raises:
        InputError: a layer has no pair of widths that is allowed and of finite harm.
    """
    layers = len(harm)
    open_pairs = budget.space.pairs().reshape(layers, -1) & np.isfinite(harm.reshape(layers, -1))
    if (shut := ~open_pairs.any(axis=1)).any():
        lost = [budget.table.names[layer] for layer in np.flatnonzero(shut)]
        raise InputError(f"layers {lost}: no allowed pair of widths has a finite harm.")
    cost = np.where(open_pairs, budget.table.grid(budget.metric).reshape(layers, -1), np.inf)
    base = cost.min(axis=1)
    slack = budget.for_layers - float(base.sum())
    slack = max(slack, 0.0) + HALF * budget.limit
    v = np.where(open_pairs, harm.reshape(layers, -1), np.inf)
    c = cost - base[:, None]
    chosen = cheapest_fitting(v, c, slack)
    pairs = improved(v, c, slack, chosen)
    return np.stack(np.divmod(pairs, MAX_BITS), axis=1).astype(np.int64) + 1


def cheapest_fitting(v: Grid, c: Grid, slack: float) -> Choice:
    """Return each row's best column at the lowest price that keeps the slack, int64 [items]."""
    affordable = np.where(np.isfinite(c), c, 0.0)
    return np.asarray((v + prices(v, c, slack)[1] * affordable).argmin(axis=1))


def prices(v: Grid, c: Grid, slack: float) -> tuple[float, float]:
    """Enclose the price at which the slack is just kept: too low, and high enough.

    Args:
        v: float64 [items, columns], infinite for columns that are shut.
        c: likewise, with a zero in each row.
        slack: what may be spent.
    """
    affordable = np.where(np.isfinite(c), c, 0.0)  # where c is infinite v is, at any price
    low, high = 0.0, 1.0
    while high < _DEAREST and _spent(v, affordable, high) > slack:
        high *= 4
    # a table in small units needs small prices, which halvings from 1 do not come near
    needed = _spent(v, affordable, 0.0) > slack
    while needed and high > _CHEAPEST and _spent(v, affordable, high / 4) <= slack:
        high /= 4
    if needed and _spent(v, affordable, high / 4) > slack:
        low = high / 4
    for _ in range(_HALVINGS):
        price = 0.5 * (low + high)
        low, high = (price, high) if _spent(v, affordable, price) > slack else (low, price)
    return low, high


def improved(v: Grid, c: Grid, slack: float, chosen: Choice) -> Choice:
    """Spend what is left on single changes, the largest gain first."""
    rows = np.arange(len(v))
    chosen = chosen.copy()
    while True:
        left = slack - c[rows, chosen].sum()
        gain = v[rows, chosen][:, None] - v
        gain = np.where(c - c[rows, chosen][:, None] <= left, gain, 0.0)
        item, pair = np.unravel_index(gain.argmax(), gain.shape)
        if not gain[item, pair] > 0:
            return chosen
        chosen[item] = pair


def _spent(v: Grid, c: Grid, price: float) -> float:
    return float(c[np.arange(len(v)), (v + price * c).argmin(axis=1)].sum())
