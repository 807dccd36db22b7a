"""HAQ's tables as cells that can be run again, with the gains that the paper prints for them.

A cell is a network, a block (a machine and what is limited on it) and a budget; a method fills it.
Results are plain rows: one for each method in each cell, and one for each reference of a network.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from haq_env.errors import InputError
from haq_env.files import replace_file, writing

FLOAT, EIGHT, UNIFORM = "float", "8 bits", "uniform"


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
        tighter: a budget below the paper's, for networks that lose little at those; may be empty.
    """

    name: str
    source: str
    hardware: str
    metric: str
    budgets: tuple[str, ...]
    quantizer: str = "linear"
    bits: tuple[int, int] = (2, 8)
    inner: bool = False
    tighter: str = ""

    @property
    def all_budgets(self) -> tuple[str, ...]:
        """The paper's and the tighter one, the tightest first."""
        return (self.tighter, *self.budgets) if self.tighter else self.budgets


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
                tighter="w3a3",
            ),
            Block(
                "cloud-latency",
                "Table 3",
                "bismo-cloud",
                "latency",
                _ALIKE,
                inner=True,
                tighter="w3a3",
            ),
            Block("bitfusion-latency", "Table 4", "bitfusion", "latency", _MIXED, tighter="w2a4"),
            Block("bitfusion-energy", "Table 5", "bitfusion", "energy", _MIXED, tighter="w2a4"),
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


class Cell(NamedTuple):
    """Where methods are compared."""

    network: str
    block: str
    budget: str


def family(network: str) -> str:
    """Return the network that the paper's tables have, for one of another width."""
    return network.removesuffix("_050")


def paper_gain(cell: Cell) -> float | None:
    """Return the paper's gain in points, None where it has no such cell."""
    gains = PAPER_GAINS.get((family(cell.network), cell.block))
    budgets = BLOCKS[cell.block].budgets
    return (
        None if gains is None or cell.budget not in budgets else gains[budgets.index(cell.budget)]
    )


def ordered_cells(networks: Sequence[str], blocks: Sequence[str]) -> list[Cell]:
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
                    cells += [Cell(network, b, BLOCKS[b].budgets[number]) for b in blocks]
    return cells


def tighter_cells(networks: Sequence[str], blocks: Sequence[str]) -> list[Cell]:
    """List the cells of budgets below the paper's, network by network."""
    return [Cell(n, b, BLOCKS[b].tighter) for n in networks for b in blocks if BLOCKS[b].tighter]


@dataclass(frozen=True)
class Result:
    """What one method has reached in one cell, or a reference of a network.

    Attributes:
        network: its name.
        block: a key of `BLOCKS`; empty for a reference.
        budget: one of the block's; empty for a reference.
        method: a search method, ``"uniform"``, or the reference: ``"float"``, ``"8 bits"``.
        quantizer: of the weights; empty for the float network.
        weights: digest of the checkpoint.
        arithmetic: what measured the accuracies: ``"int8"`` kernels or ``"float"``.
        processor: what finetuned it: the last digits of its sums move accuracies.
        steps: version of the training step that finetuned it (`fingerprint.STEPS`), likewise.
        w_bits: a digit for each layer; empty for the float network.
        a_bits: likewise.
        evaluations: policies that the search has measured, the uniform one included.
        charge: what it computed before, in evaluations.
        searched: top-1 inside the search on the held-out images, percent; NaN for a reference.
        untrained: top-1 of the float network without the final finetuning, on the test images,
            percent; NaN for all others.
        val: top-1 after the final finetuning on the held-out images, percent, one for each seed.
        test: likewise on the test images.
        cost: of all layers, in the unit of the block's metric; NaN for a reference.
        limit: the budget, likewise.
        eight: cost of 8 bits everywhere, likewise.
        counted: cost of the layers that the paper's table counts; NaN for a reference.
        counted_eight: the same of 8 bits.
        seconds: of the call that wrote this; what earlier calls or cells had measured took none.
    """

    network: str
    block: str
    budget: str
    method: str
    quantizer: str
    weights: str
    arithmetic: str
    processor: str
    steps: int
    w_bits: str
    a_bits: str
    evaluations: int
    charge: float
    searched: float
    untrained: float
    val: tuple[float, ...]
    test: tuple[float, ...]
    cost: float
    limit: float
    eight: float
    counted: float
    counted_eight: float
    seconds: float

    def __post_init__(self) -> None:
        if not self.test or len(self.val) != len(self.test):
            raise InputError(f"{self.what}: one accuracy or more is needed, val as many as test.")
        if not all(0 <= accuracy <= 100 for accuracy in (*self.val, *self.test)):
            raise InputError(f"{self.what}: accuracies must be 0 to 100 percent.")
        if self.block and self.cost > self.limit * (1 + 1e-9):
            raise InputError(f"{self.what}: the policy costs more than the budget.")

    @property
    def what(self) -> tuple[str, str, str, str, str]:
        """What this is of: network, block, budget, method; quantizer of a reference."""
        quantizer = "" if self.block else self.quantizer
        return self.network, self.block, self.budget, self.method, quantizer

    @property
    def sums(self) -> tuple[str, int]:
        """How sums are computed: accuracies differ seed by seed where this does."""
        return self.processor, self.steps

    @property
    def key(self) -> tuple[str, str, str, str, str, str, int]:
        """Which result this is: of what, and where it was finetuned."""
        return *self.what, *self.sums

    @property
    def reduction(self) -> float:
        """Cost of 8 bits over this cost, of the layers that the paper's table counts."""
        return self.counted_eight / self.counted

    def mean_and_error(self, part: str) -> tuple[float, float]:
        """Return the mean of ``"val"`` or ``"test"`` over seeds, and its standard error."""
        return mean_and_error(getattr(self, part))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)


# -- rows ----------------------------------------------------------------------------------------


def to_record(result: Result) -> dict[str, Any]:
    """Return plain values that fit JSON and CSV: lists as text, NaN as nothing."""
    row = asdict(result)
    for name in ("val", "test"):
        row[name] = " ".join(map(repr, row[name]))
    return {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def from_record(record: Mapping[str, Any]) -> Result:
    """Read what `to_record` has made.

    Raises:
        InputError: something is missing or no number.
    """
    values: dict[str, Any] = {}
    try:
        for field in fields(Result):
            value = record[field.name]
            if field.name in ("val", "test"):
                value = tuple(float(number) for number in value.split())
            elif field.type == "int":
                value = int(value)
            elif field.type == "float":
                value = math.nan if value == "" else float(value)
            values[field.name] = value
        return Result(**values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"a result is damaged: {error!r}.") from error


def write_results(results: Iterable[Result], path: Path) -> None:
    """Write results as CSV, sorted; the file is replaced at once.

    Raises:
        InputError: it cannot be written.
    """
    text = io.StringIO()
    names = [field.name for field in fields(Result)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        to_record(each) for each in sorted(results, key=lambda each: tuple(map(str, each.key)))
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.getvalue())


def read_results(path: Path) -> list[Result]:
    """Read what `write_results` has written.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        text = path.read_bytes().decode()
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}.") from error
    if not text.endswith("\n"):
        raise InputError(f"{path} ends in the middle of a line.")
    try:
        return [from_record(row) for row in rows]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
