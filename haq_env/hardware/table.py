"""Cost tables as CSV files: written for people, read from anyone who has measured something."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from haq_env.cost import CostTable
from haq_env.errors import InputError
from haq_env.files import replace_file
from haq_env.hardware.cells import COLUMNS, Sheet
from haq_env.hardware.lint import lint_table
from haq_env.hardware.size import counted_costs, float_bytes
from haq_env.layers import LayerTable
from haq_env.policy import MAX_BITS

__all__ = ["MeasuredTable", "lint_file", "lint_table", "read_table", "write_table"]


@dataclass(frozen=True)
class MeasuredTable:
    """A machine that is known by a table of costs alone.

    Attributes:
        path: a CSV file in one of the two formats that `read_table` reads.
    """

    path: str | Path

    def cost_table(self, layers: LayerTable) -> CostTable:
        """Read the table of this network; raises InputError as `read_table` does."""
        return read_table(self.path, layers)


def write_table(path: str | Path, table: CostTable, layers: LayerTable | None = None) -> None:
    """Write the complete table: header, then one line per layer and pair of bits.

    Args:
        path: the file.
        table: the costs.
        layers: the network that they are of, so that the file tells its MACs also where the
            table does not count them.

    Columns are layer, name, w_bits, a_bits, cycles, latency_ms, energy_mj, size_bytes; empty
    where the hardware has no model. Reading the file gives the same numbers, to the last bit;
    traffic and roofs are not in it. The file is replaced in one step.
    """
    header = [
        ("hardware", table.hardware),
        ("batch", str(table.batch)),
        ("clock_hz", "" if table.clock_hz is None else _exact(table.clock_hz)),
        ("source", table.source),
        ("metric", table.metric),
        ("macs", _macs(table) if layers is None else str(sum(layer.macs for layer in layers))),
    ]
    header += [("note", note) for note in table.notes]
    for column, metric in COLUMNS.items():
        if table.constant(metric):
            header.append((f"constant {column}", _exact(table.constant(metric))))
    text = io.StringIO()
    for key, value in header:
        text.write(f"# {key}: {' '.join(value.split())}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "name", "w_bits", "a_bits", *COLUMNS])
    grids = [table.values.get(metric) for metric in COLUMNS.values()]
    for index, name in enumerate(table.names):
        for w in range(MAX_BITS):
            for a in range(MAX_BITS):
                cells = ["" if grid is None else _exact(grid[index, w, a]) for grid in grids]
                writer.writerow([index, name, w + 1, a + 1, *cells])
    path = Path(path)
    replace_file(path, text.getvalue())


def read_table(path: str | Path, layers: LayerTable) -> CostTable:
    """Read the costs of a network from a CSV file.

    Lines ``# key: value`` above the columns say what the numbers are: hardware, batch, clock_hz,
    source, any number of notes, and macs, of one sample in all layers: layers of a network of
    another width or for other images have the same names, and are told apart by it. Two sets of
    columns are read:

    * ``layer,w_bits,a_bits,value`` with ``# metric: latency`` and ``# unit: ms`` in the header.
      Units are s, ms, us, ns for latency; J, mJ, uJ for energy; bytes, KiB, MiB for size and
      traffic; cycles for cycles. Cycles and a clock give a latency too.
    * the complete table of `write_table`, of which columns of costs may be missing or empty.

    Size, bit operations and MACs are counted from the layers where the file does not give them.

    Args:
        path: the file. ``layer`` is a layer's name, or its index from 0.
        layers: the network; the file must give every layer at all bits from 1 to 8.

    Raises:
        InputError: a field is missing, given twice, not a number or not allowed; the message
            names the file, the line, the field, its value and what is allowed. Or the file is for
            another size of the network.
    """
    sheet = Sheet.read(Path(path))
    about = sheet.about
    grids = sheet.grids(layers)
    macs, expected = sheet.number("macs"), sum(layer.macs for layer in layers)
    if macs is not None and macs != expected:
        raise InputError(
            f"{path} has the costs of {macs:,.0f} MACs a sample (line '# macs'), and "
            f"{layers.network!r} has {expected:,}: the table is for another width or image size."
        )
    batch, clock = sheet.number("batch"), sheet.number("clock_hz")
    if batch is not None and (batch < 1 or batch % 1):
        raise InputError(f"{path}: batch must be a positive integer, not {about['batch']!r}.")
    if clock == 0:
        raise InputError(f"{path}: clock_hz must be a positive number, not 0.")
    samples = 1 if batch is None else int(batch)
    if "cycles" in grids and "latency" not in grids and clock:
        grids["latency"] = grids["cycles"] / clock * 1e3
    constants = {} if "size" in grids else float_bytes(layers)
    for column, metric in COLUMNS.items():
        constant = sheet.number(f"constant {column}")
        if constant is not None:
            constants[metric] = constant
    first = next(metric for metric in ("latency", "energy", *grids) if metric in grids)
    wanted = about.get("metric", first)
    return CostTable(
        names=layers.names,
        values={**counted_costs(layers, samples), **grids},
        hardware=about.get("hardware", Path(path).stem),
        batch=samples,
        clock_hz=clock,
        source=about.get("source", str(path)),
        constants=constants,
        notes=tuple(value for key, value in sheet.header if key == "note"),
        metric=wanted if wanted in grids else first,
        missing={metric: f"{path} gives none." for metric in ("latency", "energy", "cycles")},
    )


def lint_file(path: str | Path, layers: LayerTable) -> list[str]:
    """Describe what stops the reading of a CSV file, or else what `lint_table` finds in it."""
    try:
        return lint_table(read_table(path, layers))
    except InputError as error:
        return [str(error)]


def _macs(table: CostTable) -> str:
    """Return the multiply-accumulates of one sample; empty where the table does not count them."""
    grid = table.values.get("macs")
    return "" if grid is None else _exact(grid[:, 0, 0].sum() / table.batch)


def _exact(number: float) -> str:
    number = float(number)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
