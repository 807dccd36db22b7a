"""What was reached in the cells of HAQ's tables, as plain rows and as a CSV file of them.

There is one row for each method in each cell, and one for each reference of a network.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from result_files import write_text

from haq_env.errors import InputError
from haq_env.report.scores import mean_and_error

FLOAT, EIGHT, UNIFORM = "float", "8 bits", "uniform"  # methods that search nothing


@dataclass(frozen=True)
class Result:
    """What one method has reached in one cell, or a reference of a network.

    Attributes:
        network: its name.
        block: a key of `haq_paper.BLOCKS`; empty for a reference.
        budget: one of the block's; empty for a reference.
        method: a search method, ``"uniform"``, or the reference: ``"float"``, ``"8 bits"``.
        quantizer: of the weights; empty for the float network.
        weights: digest of the checkpoint.
        arithmetic: what measured the accuracies: ``"int8"`` kernels or ``"float"``.
        processor: what finetuned it: the last digits of its sums move accuracies.
        steps: version of the step that finetuned it (`fingerprint.TRAINING_STEP`), likewise.
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
    write_text(path, text.getvalue())


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
