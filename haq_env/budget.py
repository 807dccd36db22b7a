"""The hard limit of a search, and the way back under it: projection and fill-up."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq_env.cost import CostTable, Grid
from haq_env.errors import InputError
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits, as_bits
from haq_env.space import BitSpace

_NAMED = re.compile(r"w([1-8])a([1-8])")


@dataclass(frozen=True)
class Budget:
    """A limit on one cost of a network, for policies of one space.

    Build it with `Budget.of`. All methods take and return int64 arrays [..., L, 2].

    Attributes:
        metric: which cost is limited.
        limit: the largest cost allowed, in the metric's unit.
        reference: the cost of the network with 8 bits everywhere.
        table: the costs.
        space: the allowed bits.
        fill_up: whether `project` spends the slack that is left.
        named: bits (w, a) of the uniform policy that gave the limit its name, if one did.
    """

    metric: str
    limit: float
    reference: float
    table: CostTable
    space: BitSpace
    fill_up: bool = True
    named: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        table: CostTable,
        space: BitSpace,
        budget: float | str,
        metric: str | None = None,
        *,
        fill_up: bool = True,
    ) -> Budget:
        """Turn ``0.6`` or ``"w4a4"`` into a limit.

        Args:
            table: the costs.
            space: the allowed bits.
            budget: a share in (0, 1] of the 8-bit network's cost, or the name of a uniform
                policy (``"w4a4"``) whose cost, with the pinned layers pinned, is the limit.
            metric: which cost; the table's own first choice when None.
            fill_up: spend the slack after the projection (see `project`).

        Raises:
            InputError: not a budget, or none of the allowed policies fits it; the message says
                what the smallest reachable budget is.
        """
        metric = table.metric if metric is None else metric
        eight = np.full((len(table.names), 2), MAX_BITS, dtype=np.int64)
        reference = float(table.cost(eight, metric))
        match = _NAMED.fullmatch(budget) if isinstance(budget, str) else None
        named = (int(match[1]), int(match[2])) if match else None
        if named:
            limit = float(table.cost(_uniform(space, *named), metric))
        else:
            limit = _share(budget) * reference
        result = cls(metric, limit, reference, table, space, fill_up, named)
        smallest = float(table.cost(result._cheapest, metric))
        if smallest > limit * (1 + 1e-12):
            needs = np.ceil(smallest / reference * 1e4) / 1e4
            raise InputError(
                f"budget {budget!r} cannot be reached: it allows {limit / reference:.4f} of the "
                f"8-bit network's {metric}, but with bits {space.bits} every policy takes at least "
                f"{needs:.4f}."
            )
        return result

    @property
    def ratio(self) -> float:
        """The limit as a share of the 8-bit network's cost."""
        return self.limit / self.reference

    def cost(self, bits: Bits) -> Grid:
        """Return the limited cost of policies, float64 [...]."""
        return self.table.cost(bits, self.metric)

    def fits(self, bits: Bits) -> NDArray[np.bool_]:
        """Say which policies are inside the budget, bool [...]."""
        return np.asarray(self._inside(self.cost(bits)))

    def project(self, bits: Bits) -> Bits:
        """Bring policies inside the budget, as HAQ does, and spend the slack.

        HAQ's order (released code, ``linear_quantize_env.py``): sweeps from the last layer to the
        first; in each layer one bit less for the activations, then for the weights; stop as soon
        as the cost fits. HAQ stops there, which leaves slack and lets requests that differ end
        as one policy. With ``fill_up`` the slack is spent, bit by bit for as long as one fits:
        first where most bits are missing of what was asked for, then on the smallest widths.
        A policy that is inside already is not lowered, so projecting twice changes nothing.

        Returns:
            int64 [..., L, 2], inside the budget and the space.
        """
        bits = as_bits(bits, len(self.table.names))
        asked = self.space.clip(bits.reshape(-1, *bits.shape[-2:]))
        flat = self._lowered(asked)
        if self.fill_up:
            self._raise(flat, asked)
        return np.asarray(flat.reshape(bits.shape))

    def uniform(self) -> Bits:
        """Return the largest uniform policy that fits, with pinned layers pinned.

        It is the one that gave the budget its name, if one did. Otherwise the narrower of w and
        a is as wide as it can be, then their sum. Where not even the smallest one fits, because
        the costs are not monotone, it is the projection of the smallest one.
        """
        low, high = self.space.bits
        widths = range(low, high + 1)
        pairs = sorted(itertools.product(widths, widths), key=lambda p: (min(p), sum(p), p))
        if self.named and set(self.named) <= {*widths, MAX_BITS}:
            pairs.append(self.named)
        for w_bits, a_bits in reversed(pairs):
            policy = self.space.uniform(w_bits, a_bits)
            if self.fits(policy):
                return policy
        return self.project(self.space.lowest)

    def reachable(self, bits: Bits, decided: int) -> NDArray[np.bool_]:
        """Say which widths of the next step leave the budget reachable.

        Args:
            bits: int64 [L, 2]; only the sides that earlier steps decided (and pinned ones) count.
            decided: how many steps have been decided.

        Returns:
            bool [8], entry b - 1 for b bits: allowed by the space, and the cheapest completion
            of the policy is inside the budget. At least one entry is true if the earlier
            decisions were taken from this mask.
        """
        layer, side = self.space.steps[decided]
        open_pairs = self._open_pairs(bits, decided)
        grid = np.where(open_pairs, self.table.grid(self.metric), np.inf)
        others = np.delete(grid.min(axis=(1, 2)), layer).sum() + self.table.constant(self.metric)
        best = grid[layer].min(axis=1 - side)
        return np.asarray(self._inside(best + others))

    # -- how ----------------------------------------------------------------------------------

    @property
    def _cheapest(self) -> Bits:
        """The policy of smallest cost: the best pair of each layer, since costs add up."""
        grid = np.where(self.space.pairs(), self.table.grid(self.metric), np.inf)
        best = grid.reshape(len(grid), -1).argmin(axis=1)
        return np.stack(np.divmod(best, MAX_BITS), axis=1).astype(np.int64) + 1

    def _open_pairs(self, bits: Bits, decided: int) -> NDArray[np.bool_]:
        pairs = self.space.pairs()
        for layer, side in self.space.steps[:decided]:
            chosen = np.arange(1, MAX_BITS + 1) == bits[layer, side]
            pairs[layer] &= chosen[:, None] if side == WEIGHT else chosen[None, :]
        return pairs

    def _inside(self, cost: Grid) -> NDArray[np.bool_]:
        # Sums in another order differ in the last digits; that must not exclude a named budget.
        return np.asarray(cost <= self.limit * (1 + 1e-12))

    def _lowered(self, asked: Bits) -> Bits:
        """Take bits away in HAQ's order until the cost fits.

        What a sweep takes does not depend on the costs, so the cost after every single bit is a
        running sum of look-ups, and the policy that fits is where it first is low enough.
        """
        grid = self.table.grid(self.metric)
        sweeps = np.arange(MAX_BITS)[:, None, None]
        after = np.maximum(asked[:, None] - sweeps, self.space.lowest)  # [N, sweep, L, 2]
        w, a = after[..., WEIGHT] - 1, after[..., ACTIVATION] - 1
        layer = np.arange(len(grid))
        before_both, before_weight = (
            grid[layer, w[:, :-1], a[:, :-1]],
            grid[layer, w[:, :-1], a[:, 1:]],
        )
        saved = np.stack(
            [before_both - before_weight, before_weight - grid[layer, w[:, 1:], a[:, 1:]]], -1
        )
        saved = saved[:, :, ::-1].reshape(len(asked), -1)  # last layer first, activations first
        total = self.cost(asked)
        inside = self._inside(total[:, None] - saved.cumsum(axis=1))
        inside = np.concatenate([self._inside(total)[:, None], inside], axis=1)
        taken = inside.argmax(axis=1)
        # bits that were taken in the sweep that was not finished
        sweep, rest = np.divmod(taken, 2 * len(grid))
        rows = np.arange(len(asked))
        order = np.arange(2 * len(grid)).reshape(-1, 2)[::-1, ::-1]  # [L, 2]: when a side's turn is
        begun = order < rest[:, None, None]
        flat = np.where(begun, after[rows, np.minimum(sweep + 1, MAX_BITS - 1)], after[rows, sweep])
        flat[~inside.any(axis=1)] = (
            self._cheapest
        )  # the table is not monotone, and lowest is not least
        return np.asarray(flat)

    def _raise(self, flat: Bits, asked: Bits) -> None:
        """Add bits while any single one fits, those of the lowest rank first."""
        layer, side = np.array(self.space.steps).T
        slots = np.full(flat.shape[1:], -1)
        slots[layer, side] = np.arange(len(layer))
        slack = self.limit * (1 + 1e-12) - self.cost(flat)
        rows = np.arange(len(flat))
        price = np.stack([self._price(flat, rows, *step) for step in self.space.steps], axis=1)
        order = np.arange(len(layer))
        rank = self._rank(flat, asked, np.s_[:], layer, side) * len(layer) + order
        never = np.iinfo(np.int64).max
        while rows.size:
            key = np.where(price[rows] <= slack[rows, None], rank[rows], never)
            best = key.argmin(axis=1)
            fits = key[np.arange(len(rows)), best] < never
            rows, best = rows[fits], best[fits]
            at, turn = layer[best], side[best]
            flat[rows, at, turn] += 1
            slack[rows] -= price[rows, best]
            rank[rows, best] = self._rank(flat, asked, rows, at, turn) * len(layer) + best
            for other in (WEIGHT, ACTIVATION):  # the price of either side depends on both
                changed = slots[at, other] >= 0
                price[rows[changed], slots[at, other][changed]] = self._price(
                    flat, rows[changed], at[changed], other
                )

    @staticmethod
    def _rank(flat: Bits, asked: Bits, rows: Any, layer: Any, side: Any) -> Bits:
        """A width ranks by the bits it lacks (below 0); once it has them, by its bits."""
        missing = flat[rows, layer, side] - asked[rows, layer, side]
        return np.asarray(np.where(missing < 0, missing, flat[rows, layer, side]))

    def _price(self, flat: Bits, rows: NDArray[np.intp], layer: Any, side: Any) -> Grid:
        """What one more bit would cost; infinite where there is none."""
        grid = self.table.grid(self.metric)
        w, a = flat[rows, layer, WEIGHT], flat[rows, layer, ACTIVATION]
        full = flat[rows, layer, side] >= self.space.highest[layer, side]
        more_w, more_a = (
            (w, np.minimum(a + 1, MAX_BITS)) if side else (np.minimum(w + 1, MAX_BITS), a)
        )
        price = grid[layer, more_w - 1, more_a - 1] - grid[layer, w - 1, a - 1]
        return np.where(full, np.inf, price)


def _share(budget: float | str) -> float:
    try:
        share = float(budget)
    except (TypeError, ValueError):
        share = float("nan")
    if not 0 < share <= 1:
        raise InputError(
            f"budget must be a share in (0, 1] of the 8-bit network's cost or the name of a "
            f"uniform policy such as 'w4a4', not {budget!r}."
        )
    return share


def _uniform(space: BitSpace, w_bits: int, a_bits: int) -> Bits:
    # Only pins hold here: "w1a1" is a fair budget even where the search starts at 2 bits.
    bits = np.tile(np.array([w_bits, a_bits], dtype=np.int64), (len(space.allowed), 1))
    pinned = space.lowest == space.highest
    return np.asarray(np.where(pinned, space.highest, bits))
