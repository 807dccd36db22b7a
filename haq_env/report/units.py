"""Human units: which of ms, us, MiB, ... a cost is best read in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from haq_env.cost import UNITS

DASH = "-"  # stands where there is no number

_BYTES = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("bytes", 1.0))
_COUNTS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
# metric to units, largest first, with how many of `haq_env.cost.UNITS` one is
_LADDERS: Mapping[str, tuple[tuple[str, float], ...]] = MappingProxyType(
    {
        "latency": (("s", 1e3), ("ms", 1.0), ("us", 1e-3), ("ns", 1e-6)),
        "energy": (("J", 1e3), ("mJ", 1.0), ("uJ", 1e-3), ("nJ", 1e-6)),
        "size": _BYTES,
        "traffic": _BYTES,
        "macs": _COUNTS,
        "bitops": _COUNTS,
    }
)


@dataclass(frozen=True)
class Scale:
    """A unit for a column of numbers, and how they are written in it.

    Attributes:
        unit: what stands in the column's head; empty where the metric's name says it.
        factor: how many of the metric's unit (`haq_env.cost.UNITS`) one of these is.
        decimals: digits after the point.
    """

    unit: str
    factor: float
    decimals: int

    @classmethod
    def of(cls, metric: str, largest: float) -> Scale:
        """Choose the unit in which the largest number of a column is 1 or more.

        Args:
            metric: a metric of `haq_env.cost.UNITS`.
            largest: the largest number, in the metric's unit.
        """
        if metric not in _LADDERS:  # cycles are exact integers and stay so
            return cls("", 1.0, 0)
        ladder = _LADDERS[metric]
        unit, factor = next((step for step in ladder if largest >= step[1]), ladder[-1])
        whole = factor == 1.0 and metric not in ("latency", "energy")  # bytes and counts
        return cls(unit, factor, 0 if whole else 3 if largest / factor < 100 else 2)

    def write(self, value: float) -> str:
        """Write a number in this unit, without the unit."""
        scaled = value / self.factor
        smallest = 10.0**-self.decimals
        if self.decimals and 0 < scaled < smallest / 2:  # small, but not nothing
            return f"<{smallest:.{self.decimals}f}"
        return f"{scaled:,.{self.decimals}f}"


def heading(metric: str, scale: Scale) -> str:
    """Return a column's head: the metric, and its unit on a second line."""
    name = "MACs" if metric == "macs" else metric
    unit = f"{scale.unit} {UNITS[metric]}".strip() if metric == "bitops" else scale.unit
    return f"{name}\n{unit}".rstrip()
