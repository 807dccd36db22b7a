"""HAQ's tables as cells that can be run again, with the gains that the paper prints for them.

A cell is a network, a block (a machine and what is limited on it) and a budget; a method fills it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple


@dataclass(frozen=True)
class Block:
    """One block of HAQ's tables.

    Attributes:
        name: what it is called here.
        source: the table of Wang et al., CVPR 2019, that it repeats.
        hardware: name of the machine.
        metric: what is limited.
        budgets: uniform policies whose cost is the limit, the tightest first.
        quantizer: of the weights.
        bits: smallest and largest width of the search.
        inner: the paper's table does not count the first and the last layer.
        tighter: budgets below the paper's, likewise, for networks that lose little at those.
    """

    name: str
    source: str
    hardware: str
    metric: str
    budgets: tuple[str, ...]
    quantizer: str = "linear"
    bits: tuple[int, int] = (2, 8)
    inner: bool = False
    tighter: tuple[str, ...] = ()

    @property
    def all_budgets(self) -> tuple[str, ...]:
        """The paper's and the tighter ones, the tightest first."""
        return (*self.tighter, *self.budgets)


_ALIKE, _MIXED = ("w4a4", "w5a5", "w6a6"), ("w4a4", "w6a4", "w6a6")
_SIZES = ("w2a8", "w3a8", "w4a8")  # weights only
BLOCKS: Mapping[str, Block] = MappingProxyType(
    {
        each.name: each
        for each in (
            Block(
                "edge-latency",
                "Table 3",
                "bismo-edge",
                "latency",
                _ALIKE,
                inner=True,
                tighter=("w3a3",),
            ),
            Block(
                "cloud-latency",
                "Table 3",
                "bismo-cloud",
                "latency",
                _ALIKE,
                inner=True,
                tighter=("w3a3",),
            ),
            Block(
                "bitfusion-latency",
                "Table 4",
                "bitfusion",
                "latency",
                _MIXED,
                tighter=("w2a4",),
            ),
            Block(
                "bitfusion-energy",
                "Table 5",
                "bitfusion",
                "energy",
                _MIXED,
                tighter=("w2a4", "w3a8"),
            ),
            Block("size", "Table 6", "size", "size", _SIZES, "kmeans", (1, 8)),
        )
    }
)

# Gain of the searched over the uniform policy of equal cost, points of top-1 on ImageNet, at the
# budgets of the block: Wang et al., CVPR 2019, the block's table.
PAPER_GAINS: Mapping[tuple[str, str], tuple[float, float, float]] = MappingProxyType(
    {
        ("mobilenet_v1", "edge-latency"): (4.96, 3.58, 0.74),
        ("mobilenet_v2", "edge-latency"): (5.60, 2.06, 0.64),
        ("mobilenet_v1", "cloud-latency"): (2.89, 2.97, 0.74),
        ("mobilenet_v2", "cloud-latency"): (5.62, 0.61, 0.60),
        ("mobilenet_v1", "bitfusion-latency"): (5.01, 2.89, 0.44),
        ("mobilenet_v1", "bitfusion-energy"): (2.34, 2.86, 0.44),
        ("mobilenet_v1", "size"): (19.52, 1.73, 0.60),
        ("mobilenet_v2", "size"): (8.68, 2.90, 0.23),
    }
)

# Cost of 8 bits over that of a searched policy, as the tables print both: the paper's headline.
# The loss against 8 bits that goes with it, in points of top-1, where it is known.
PAPER_REDUCTIONS: Mapping[tuple[str, str], tuple[float, float | None]] = MappingProxyType(
    {
        ("mobilenet_v1", "edge-latency"): (96.20 / 70.35, None),
        ("mobilenet_v2", "edge-latency"): (115.84 / 66.92, None),
        ("mobilenet_v1", "cloud-latency"): (151.09 / 77.49, 0.85),
        ("mobilenet_v2", "cloud-latency"): (189.82 / 99.07, None),
        ("mobilenet_v1", "bitfusion-latency"): (20.08 / 11.09, 0.42),
        ("mobilenet_v1", "bitfusion-energy"): (31.03 / 16.30, 0.45),
    }
)


class TableCell(NamedTuple):
    """Where methods are compared."""

    network: str
    block: str
    budget: str


def family(network: str) -> str:
    """Return the network that the paper's tables have, for one of another width."""
    return network.removesuffix("_050")


def paper_gain(cell: TableCell) -> float | None:
    """Return the paper's gain in points, None where it has no such cell."""
    gains = PAPER_GAINS.get((family(cell.network), cell.block))
    budgets = BLOCKS[cell.block].budgets
    return (
        None if gains is None or cell.budget not in budgets else gains[budgets.index(cell.budget)]
    )


def ordered_cells(networks: Sequence[str], blocks: Sequence[str]) -> list[TableCell]:
    """List the paper's cells so that the most telling ones come first.

    For every network of half width and every one of one width, in the order given, the tightest
    budget of each block and then the next one; then what is left of these; then, likewise, the
    networks that are there at half width too.
    """
    later = [name for name in networks if f"{name}_050" in networks]
    cells = []
    for group in ([name for name in networks if name not in later], later):
        for budgets in ((0, 1), (2,)):
            for network in group:
                for number in budgets:
                    cells += [TableCell(network, b, BLOCKS[b].budgets[number]) for b in blocks]
    return cells


def tighter_cells(networks: Sequence[str], blocks: Sequence[str]) -> list[TableCell]:
    """List the cells of budgets below the paper's, network by network."""
    return [
        TableCell(n, b, budget) for n in networks for b in blocks for budget in BLOCKS[b].tighter
    ]
