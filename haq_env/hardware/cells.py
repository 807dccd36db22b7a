"""From the lines of a CSV file to grids of costs, with every error at its line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from haq_env.cost import Grid
from haq_env.errors import InputError, unknown_name
from haq_env.layers import LayerTable
from haq_env.policy import MAX_BITS, MIN_BITS

KEYS = ("layer", "w_bits", "a_bits")
_EMPTY = ", \t"  # what a line is made of that says nothing
# columns of the complete table, in the units of `haq_env.cost.UNITS`
COLUMNS: Mapping[str, str] = MappingProxyType(
    {"cycles": "cycles", "latency_ms": "latency", "energy_mj": "energy", "size_bytes": "size"}
)
_BYTES = MappingProxyType({"bytes": 1.0, "KiB": 2.0**10, "MiB": 2.0**20})
# metric to unit to how many of `haq_env.cost.UNITS` one is
CONVERTIBLE: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "cycles": MappingProxyType({"cycles": 1.0}),
        "latency": MappingProxyType({"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}),
        "energy": MappingProxyType({"J": 1e3, "mJ": 1.0, "uJ": 1e-3}),
        "size": _BYTES,
        "traffic": _BYTES,
    }
)


class Row(NamedTuple):
    """One line of the table: where it stands, and its cells by column."""

    line: int
    cells: Mapping[str, str]


class Column(NamedTuple):
    """What the numbers of one column are: a metric, in so many of its unit."""

    name: str
    metric: str
    factor: float


@dataclass(frozen=True)
class Sheet:
    """A CSV file, split but not yet understood.

    Attributes:
        path: the file.
        header: the ``# key: value`` lines, in order; keys may repeat.
        columns: names of the columns.
        rows: the lines below the names.
    """

    path: Path
    header: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, path: Path) -> Sheet:
        """Split a file; raises InputError if it is unreadable, empty or ragged.

        A spreadsheet fills every line up with empty cells to the longest one: they are left out.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the table {path}: {error}.") from error
        body = [i for i, line in enumerate(lines) if line.strip(_EMPTY) and line[0] != "#"]
        if not body:
            raise InputError(f"{path} has no column names; expected {', '.join(KEYS)}, value.")
        header = []
        for line in lines[: body[0]]:
            key, _, value = line.rstrip(_EMPTY).lstrip("#").partition(":")
            header.append((key.strip(), value.strip()))
        reader = csv.reader(lines[body[0] :])
        try:
            listed = [(body[0] + reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise InputError(
                f"{path}, line {body[0] + reader.line_num}: {error}; is a quote not closed?"
            ) from error
        columns = _filled(listed[0][1])
        rows = []
        for line_number, row in listed[1:]:
            cells = _filled(row)
            if len(cells) > len(columns) or (cells and len(row) < len(columns)):
                raise InputError(
                    f"{path}, line {line_number}: {len(row)} cells, but there are "
                    f"{len(columns)} columns ({', '.join(columns)})."
                )
            if cells:
                named = zip_longest(columns, cells, fillvalue="")
                rows.append(Row(line_number, dict(named)))
        return cls(path, tuple(header), columns, tuple(rows))

    @property
    def about(self) -> dict[str, str]:
        """The header's values that are not empty, by key."""
        return {key: value for key, value in self.header if value}

    def number(self, key: str) -> float | None:
        """Return a number of 0 or more from the header, None where it is not given."""
        text = self.about.get(key)
        return None if text is None else _number(self.path, None, key, text)

    def grids(self, layers: LayerTable) -> dict[str, Grid]:
        """Put the cells where they belong: metric to float64 [L, 8, 8].

        Columns that are empty throughout are left out.

        Raises:
            InputError: a cell is missing, given twice or not a number; a layer is unknown; bits
                are out of range; a column, the metric or the unit is missing or unknown.
        """
        costs = self._costs()
        shape = (len(layers), MAX_BITS, MAX_BITS)
        grids = {column.metric: np.full(shape, np.nan) for column in costs}
        seen: dict[tuple[int, int, int], int] = {}
        for (line, cells), at in zip(self.rows, self._places(layers), strict=True):
            if at in seen:
                raise InputError(
                    f"{self.path}, line {line}: {_cell(layers, at)} is given twice, first in "
                    f"line {seen[at]}."
                )
            seen[at] = line
            for name, metric, factor in costs:
                if cells[name]:
                    grids[metric][at] = _number(self.path, line, name, cells[name]) * factor
        # An empty column says "no model" in the complete table; a file with no number is refused.
        grids = {metric: grid for metric, grid in grids.items() if not np.isnan(grid).all()}
        if not grids:
            raise InputError(
                f"{self.path} gives no costs; expected {len(layers) * MAX_BITS**2} lines, one per "
                "layer and pair of bits."
            )
        for metric, grid in grids.items():
            absent = np.argwhere(np.isnan(grid))
            if len(absent):
                shown = "; ".join(_cell(layers, at) for at in absent[:3])
                shown += ", ..." if len(absent) > 3 else ""
                raise InputError(
                    f"{self.path}: {metric} misses {len(absent)} of {grid.size} cells: {shown}"
                )
        return grids

    def _costs(self) -> list[Column]:
        """Check the columns' names and return those that hold costs."""
        doubled = [name for name in self.columns if self.columns.count(name) > 1]
        if doubled:
            raise InputError(f"{self.path}: the column {doubled[0]!r} occurs twice.")
        absent = [key for key in KEYS if key not in self.columns]
        if absent:
            raise InputError(
                f"{self.path}: the column {absent[0]!r} is missing; needed are {', '.join(KEYS)} "
                f"and value, or some of {', '.join(COLUMNS)}; found {', '.join(self.columns)}."
            )
        single = "value" in self.columns
        allowed = [*KEYS, "name", *(["value"] if single else COLUMNS)]
        for name in self.columns:
            if name not in allowed:
                raise InputError(f"{self.path}: {unknown_name('column', name, allowed)}")
        if single:
            return [Column("value", *self._unit())]
        costs = [Column(name, COLUMNS[name], 1.0) for name in self.columns if name in COLUMNS]
        if not costs:
            raise InputError(
                f"{self.path}: no column of costs; expected value, or some of {', '.join(COLUMNS)}."
            )
        return costs

    def _unit(self) -> tuple[str, float]:
        about = self.about
        for key in ("metric", "unit"):
            if key not in about:
                known = "; ".join(f"{m}: {', '.join(units)}" for m, units in CONVERTIBLE.items())
                raise InputError(
                    f"{self.path}: the header line '# {key}: ...' is missing. Metrics and their "
                    f"units: {known}."
                )
        metric, unit = about["metric"], about["unit"]
        if metric not in CONVERTIBLE:
            raise InputError(f"{self.path}: {unknown_name('metric', metric, CONVERTIBLE)}")
        if unit not in CONVERTIBLE[metric]:
            wrong = unknown_name(f"unit of {metric}", unit, CONVERTIBLE[metric])
            raise InputError(f"{self.path}: {wrong}")
        return metric, CONVERTIBLE[metric][unit]

    def _places(self, layers: LayerTable) -> Iterator[tuple[int, int, int]]:
        """Return layer, w_bits - 1 and a_bits - 1 of every row."""
        indices = self._indices(layers)
        for line, cells in self.rows:
            layer, name = cells["layer"], cells.get("name")
            if layer not in indices:
                wrong = unknown_name("layer", layer, layers.names)
                raise InputError(f"{self.path}, line {line}: {wrong} Or 0 to {len(layers) - 1}.")
            index = indices[layer]
            if name and name != layers.names[index]:
                raise InputError(
                    f"{self.path}, line {line}: layer {layer} is called {name!r} here, but "
                    f"{layers.names[index]!r} in {layers.network!r}."
                )
            w_bits, a_bits = (_bits(self.path, line, side, cells[side]) for side in KEYS[1:])
            yield index, w_bits - 1, a_bits - 1

    def _indices(self, layers: LayerTable) -> dict[str, int]:
        """Return what the cells of the column ``layer`` mean."""
        by_name = {name: index for index, name in enumerate(layers.names)}
        # Layers may be called "0", "2", ...: only the whole column tells names from indices.
        if "name" not in self.columns and all(row.cells["layer"] in by_name for row in self.rows):
            return by_name
        return by_name | {str(index): index for index in range(len(layers))}


def _filled(cells: Sequence[str]) -> tuple[str, ...]:
    """Return the cells without those after the last that says something."""
    stripped = [cell.strip() for cell in cells]
    while stripped and not stripped[-1]:
        stripped.pop()
    return tuple(stripped)


def _bits(path: Path, line: int, field: str, text: str) -> int:
    if text not in {str(bits) for bits in range(MIN_BITS, MAX_BITS + 1)}:
        raise InputError(
            f"{path}, line {line}: {field} must be {MIN_BITS} to {MAX_BITS}, not {text!r}."
        )
    return int(text)


def _number(path: Path, line: int | None, field: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        where = "" if line is None else f", line {line}"
        raise InputError(f"{path}{where}: {field} must be a number from 0 up, not {text!r}.")
    return number


def _cell(layers: LayerTable, at: Iterable[int] | Sequence[int]) -> str:
    layer, w, a = (int(index) for index in at)
    return f"layer {layers.names[layer]!r} at w_bits = {w + 1}, a_bits = {a + 1}"
