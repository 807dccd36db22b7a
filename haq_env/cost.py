"""What a hardware model says of a network: costs that are looked up and added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError, unknown_name
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, as_bits

Grid = NDArray[np.float64]

# Every metric has one unit, here and nowhere else. "traffic" is bytes to and from DRAM.
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "cycles": "cycles",
        "latency": "ms",
        "energy": "mJ",
        "size": "bytes",
        "bitops": "bit operations",
        "macs": "MACs",
        "traffic": "bytes",
    }
)


@dataclass(frozen=True, eq=False)
class Roofs:
    """The limits of a machine, for the roofline.

    Attributes:
        bandwidth: DRAM bytes per second.
        peak: multiply-accumulates per second at each bit pair, float64 [8, 8],
            indexed [w_bits - 1, a_bits - 1].
    """

    bandwidth: float
    peak: Grid


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of one network on one machine for every layer and bit pair.

    The cost of a network is the sum over its layers plus a constant that no bits change.

    Attributes:
        names: the layers' names, L of them.
        values: metric to float64 [L, 8, 8], indexed [layer, w_bits - 1, a_bits - 1], in the
            unit that `UNITS` gives the metric, for the whole batch.
        hardware: what the machine is called in reports.
        batch: samples that are computed at once.
        clock_hz: clock in Hz, or None where there is none.
        source: where the numbers come from.
        constants: metric to the cost of what is not quantized, in the same unit.
        notes: labels that must stand beside the numbers ("assumed power", "monotone").
        roofs: limits for the roofline, or None if the source does not tell them.
        metric: what a budget limits where nothing else is named; the first of the values where
            they do not have it.
        missing: metric to the reason why this hardware does not model it, one sentence.
    """

    names: tuple[str, ...]
    values: Mapping[str, Grid] = field(repr=False)  # thousands of lines
    hardware: str
    batch: int = 1
    clock_hz: float | None = None
    source: str = ""
    constants: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    roofs: Roofs | None = field(default=None, repr=False)
    metric: str = "latency"
    missing: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # integers of hardware counters and short floats would overflow in sums
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "values", {m: _numbers(self, m) for m in self.values})
        if self.metric not in UNITS:
            raise unknown_name("metric", self.metric, UNITS)
        if self.metric not in self.values:
            object.__setattr__(self, "metric", next(iter(self.values), self.metric))
        if not isinstance(self.batch, Integral) or self.batch < 1:
            raise InputError(
                f"cost table {self.hardware!r}: batch must be a positive integer, not "
                f"{self.batch!r}."
            )
        for metric, constant in self.constants.items():
            if metric not in UNITS:
                raise unknown_name("metric", metric, UNITS)
            if not (isinstance(constant, Real) and 0 <= constant < math.inf):
                raise InputError(
                    f"cost table {self.hardware!r}: the constant {metric} must be a number from 0 "
                    f"up, not {constant!r}."
                )
        for metric, grid in self.values.items():
            if metric not in UNITS:
                raise unknown_name("metric", metric, UNITS)
            shape = (len(self.names), MAX_BITS, MAX_BITS)
            if np.shape(grid) != shape:
                raise InputError(
                    f"cost table {self.hardware!r}: {metric} has the shape "
                    f"{list(np.shape(grid))}, not {list(shape)}."
                )
            usable = np.isfinite(grid) & (np.asarray(grid) >= 0)
            if not usable.all():
                layer, w, a = (int(i[0]) for i in np.nonzero(~usable))
                raise InputError(
                    f"cost table {self.hardware!r}: {metric} of layer {self.names[layer]!r} at "
                    f"w_bits = {w + 1}, a_bits = {a + 1} is missing, not finite or below 0."
                )

    def grid(self, metric: str) -> Grid:
        """Return the table of one metric, float64 [L, 8, 8].

        Raises:
            InputError: this hardware has no model of the metric.
        """
        if metric not in UNITS:
            raise unknown_name("metric", metric, UNITS)
        if metric not in self.values:
            has = ", ".join(self.values)
            reason = self.missing.get(metric)
            raise InputError(
                f"hardware {self.hardware!r} has no model of {metric}; it has {has}."
                + (f" {reason}" if reason else "")
            )
        return self.values[metric]

    def constant(self, metric: str) -> float:
        """Return the cost of what is not quantized, in the metric's unit."""
        return float(self.constants.get(metric, 0.0))

    def cost(self, bits: NDArray[np.int64], metric: str) -> Grid:
        """Look up the cost of policies.

        Args:
            bits: int array [..., L, 2] of bits 1 to 8; any number of leading axes.
            metric: which cost.

        Returns:
            float64 [...], in the metric's unit.
        """
        total = self.per_layer(bits, metric).sum(axis=-1) + self.constant(metric)
        return np.asarray(total, dtype=np.float64)

    def per_layer(self, bits: NDArray[np.int64], metric: str) -> Grid:
        """Look up the cost of every layer, float64 [..., L], without the constant."""
        grid = self.grid(metric)
        bits = as_bits(bits, len(self.names))
        # One flat gather is four times faster than indexing with three arrays.
        flat = bits[..., WEIGHT] * MAX_BITS + bits[..., ACTIVATION]
        flat += np.arange(len(self.names)) * MAX_BITS**2 - (MAX_BITS + 1)
        return grid.reshape(-1).take(flat)

    def monotone(self) -> CostTable:
        """Return the table in which more bits never cost less.

        ``cost(w, a) = min over w' >= w, a' >= a``: data may be held in a wider container
        (docs/hardware.md section 3.5).
        """
        cleaned = {}
        for metric, grid in self.values.items():
            by_weight = np.minimum.accumulate(grid[:, ::-1, :], axis=1)[:, ::-1, :]
            cleaned[metric] = np.minimum.accumulate(by_weight[:, :, ::-1], axis=2)[:, :, ::-1]
        return replace(self, values=cleaned, notes=(*self.notes, "monotone"))


def _numbers(table: CostTable, metric: str) -> Grid:
    try:
        return np.asarray(table.values[metric], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"cost table {table.hardware!r}: {metric} is no array of numbers ({error})."
        ) from error
