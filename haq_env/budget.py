"""The hard limit of a search, and the way back under it: projection and fill-up."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from haq_env.cost import UNITS, CostTable, Grid
from haq_env.errors import InputError
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits, as_bits
from haq_env.space import BitSpace

ROUNDING = 1e-12  # relative; sums in another order may exceed a limit by so much
_CHUNK = 1024  # policies that are projected at once, so that they stay in the cache
_NAMED = re.compile(r"w([1-8])a([1-8])")


@dataclass(frozen=True, eq=False)
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
    table: CostTable = field(repr=False)
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
                what the smallest reachable budget is. Or the 8-bit network costs nothing.
        """
        metric = table.metric if metric is None else metric
        eight = np.full((len(table.names), 2), MAX_BITS, dtype=np.int64)
        reference = float(table.cost(eight, metric))
        if not reference > 0:
            raise InputError(
                f"{metric} cannot be limited: the 8-bit network's is {reference:g} "
                f"{UNITS[metric]} on hardware {table.hardware!r}."
            )
        match = _NAMED.fullmatch(budget) if isinstance(budget, str) else None
        named = (int(match[1]), int(match[2])) if match else None
        if named:
            limit = float(table.cost(_uniform(space, *named), metric))
        else:
            limit = _share(budget) * reference
        result = cls(metric, limit, reference, table, space, fill_up, named)
        smallest = float(table.cost(result._cheapest, metric))
        if smallest > limit * (1 + ROUNDING):
            low, high = space.bits
            width = min(max(4, low), high)
            needs = np.ceil(smallest / reference * 1e4) / 1e4
            raise InputError(
                f"budget {budget!r} cannot be reached: it allows {limit / reference:.4f} of the "
                f"8-bit network's {metric}, but with bits {space.bits} every policy takes at least "
                f"{needs:.4f}. What the uniform policy 'w{width}a{width}' costs can be reached."
            )
        return result

    @property
    def ratio(self) -> float:
        """The limit as a share of the 8-bit network's cost."""
        return self.limit / self.reference

    @property
    def for_layers(self) -> float:
        """What the layers together may cost: the limit without the part that bits do not change."""
        return self.limit - self.table.constant(self.metric)

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
        flat = self.space.clip(bits.reshape(-1, *bits.shape[-2:]))
        for start in range(0, len(flat), _CHUNK):
            asked = flat[start : start + _CHUNK]
            lowered = self._lowered(asked)
            flat[start : start + _CHUNK] = self._raised(lowered, asked) if self.fill_up else lowered
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
        # a name may have 8 bits for sides that are pinned there, but none that would be clipped
        name = self.named
        if name and (self.space.uniform(*name) == _uniform(self.space, *name)).all():
            pairs.append(name)
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
        return np.asarray(cost <= self.limit * (1 + ROUNDING))

    def _lowered(self, asked: Bits) -> Bits:
        """Take bits away in HAQ's order until the cost fits.

        What a sweep takes does not depend on the costs. So the cost after each of its bits is a
        running sum of look-ups, and a policy that fits in the end is cut at the first that does.
        """
        flat, lowest, layers = asked.copy(), self.space.lowest, asked.shape[1]
        turn = np.arange(2 * layers).reshape(-1, 2)[::-1, ::-1]  # [L, 2]: when each side's is
        total = self.cost(flat)
        over = np.flatnonzero(~self._inside(total))
        while over.size:
            before = flat[over]
            after = np.maximum(before - 1, lowest)
            half = np.stack([before[..., WEIGHT], after[..., ACTIVATION]], axis=-1)
            costs = [self.table.per_layer(b, self.metric) for b in (before, half, after)]
            saved = np.stack([costs[0] - costs[1], costs[1] - costs[2]], axis=-1)[:, ::-1]
            running = total[over, None] - saved.reshape(len(over), -1).cumsum(axis=1)
            inside = self._inside(running)
            fits = inside.any(axis=1)
            last = np.where(fits, inside.argmax(axis=1), 2 * layers)
            flat[over] = np.where(turn <= last[:, None, None], after, before)
            total[over] = running[:, -1]
            stuck = ~fits & (before == after).all(axis=(1, 2))
            # all at their lowest, and a table that is not monotone still says no
            flat[over[stuck]] = self._cheapest
            over = over[~fits & ~stuck]
        return np.asarray(flat)

    def _raised(self, flat: Bits, asked: Bits) -> Bits:
        """Add bits while any single one fits, those of the lowest rank first."""
        flat, done = flat.copy(), flat.copy()
        layer, side = np.array(self.space.steps).T
        slots = np.full(flat.shape[1:], -1)
        slots[layer, side] = order = np.arange(len(layer))
        rows = np.arange(len(flat))
        slack = self.limit * (1 + ROUNDING) - self.cost(flat)
        w, a = flat[:, layer, WEIGHT], flat[:, layer, ACTIVATION]
        price = self._prices[layer, w - 1, a - 1, side]
        rank = _rank(flat[:, layer, side], asked[:, layer, side]) * len(layer) + order
        rank = rank.astype(np.int32)
        never = np.iinfo(rank.dtype).max
        while rows.size:
            key = np.where(price <= slack[:, None], rank, never)
            best = key.argmin(axis=1)
            here = np.arange(len(rows))
            fits = key[here, best] < never
            if not fits.all():
                done[rows[~fits]] = flat[~fits]
                flat, asked, rows, best = flat[fits], asked[fits], rows[fits], best[fits]
                slack, price, rank, here = slack[fits], price[fits], rank[fits], here[: len(rows)]
            at, which = layer[best], side[best]
            flat[here, at, which] += 1
            slack -= price[here, best]
            rank[here, best] = (
                _rank(flat[here, at, which], asked[here, at, which]) * len(layer) + best
            )
            w, a = flat[here, at].T
            new = self._prices[at, w - 1, a - 1]
            for other in (WEIGHT, ACTIVATION):  # the price of either side depends on both
                slot = slots[at, other]
                searched = slot >= 0
                price[here[searched], slot[searched]] = new[searched, other]
        return np.asarray(done)

    @cached_property
    def _prices(self) -> Grid:
        """What one more bit costs, [L, 8, 8, 2]: layer, w_bits - 1, a_bits - 1, side.

        Infinite where the side has its largest width.
        """
        grid = self.table.grid(self.metric)
        prices = np.full((*grid.shape, 2), np.inf)
        prices[:, :-1, :, WEIGHT] = np.diff(grid, axis=1)
        prices[:, :, :-1, ACTIVATION] = np.diff(grid, axis=2)
        full = np.arange(1, MAX_BITS + 1) >= self.space.highest[:, :, None]  # [L, 2, 8]
        prices[full[:, WEIGHT], :, WEIGHT] = np.inf
        prices.swapaxes(1, 2)[full[:, ACTIVATION], :, ACTIVATION] = np.inf
        return prices


def _rank(bits: Bits, asked: Bits) -> Bits:
    """A width ranks by the bits it lacks (below 0); once it has them, by its bits."""
    return np.asarray(np.where(bits < asked, bits - asked, bits))


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
