"""What networks cost on which hardware: tables, plots, and files of measured costs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from haq_env.errors import InputError
from haq_env.files import writing
from haq_env.options import BitChoice, Build, Machine, Network, OptionalPath
from haq_env.report.terminal import columns, show, write


@dataclass(frozen=True)
class Cost:
    """Show what a network costs on a machine, layer by layer and in all."""

    network: Network
    machine: Machine
    bits: BitChoice
    build: Build
    json: bool = False
    """Print JSON instead of the table."""
    table: OptionalPath = None
    """Also write the costs of all layers at all bits to this CSV file."""

    def run(self) -> None:
        """Print the table or JSON; write the CSV file."""
        from haq_env.hardware.table import write_table
        from haq_env.report.record import cost_record
        from haq_env.report.tables import cost_table

        self.bits.check()
        layers = self.build.layers(self.network, self.bits.build(self.network))
        bits = self.bits.of(layers)
        costs = self.machine.costs(layers)
        if self.table is not None:
            with writing(self.table):
                write_table(self.table, costs, layers)
        if self.json:
            write(json.dumps(cost_record(layers, costs, bits), indent=1) + "\n")
            return
        show(cost_table(layers, costs, bits, width=columns()))
        if self.table is not None:
            write(f"Written: {self.table}\n")


@dataclass(frozen=True)
class RooflinePlot:
    """Draw the layers of a network under a machine's roofs, at 8 bits and after."""

    network: Network
    machine: Machine
    bits: BitChoice
    build: Build
    out: Path = Path("roofline")
    """Files to write, without suffix: a PNG and an SVG."""

    def run(self) -> None:
        """Write both files."""
        from haq_env.policy import MAX_BITS, uniform
        from haq_env.report.roofline import plot_roofline

        self.bits.check()
        layers = self.build.layers(self.network, self.bits.build(self.network))
        after = self.bits.of(layers)
        eight = uniform(len(layers), MAX_BITS, MAX_BITS)
        policies = {"8 bits": eight}
        if (after != eight).any():
            policies[self.bits.label] = after
        with writing(self.out):
            paths = plot_roofline(layers, self.machine.costs(layers), policies, self.out)
        write("".join(f"Written: {path}\n" for path in paths))


@dataclass(frozen=True)
class Lint:
    """Look for mistakes in a CSV table of measured costs; exit code 1 if there are some."""

    file: Annotated[Positional[Path], arg(metavar="FILE", help="The table.")]
    network: Annotated[str, arg(metavar="NETWORK", help="The network that it is for.")]
    build: Build

    def run(self) -> None:
        """Print one line for each finding."""
        from haq_env.hardware.table import lint_file

        try:
            self.file.open("rb").close()  # no table at all is a wrong argument, not a finding
        except OSError as error:
            raise InputError(f"cannot read {self.file}: {error.strerror}.") from error
        findings = lint_file(self.file, self.build.layers(self.network))
        write("".join(f"{finding}\n" for finding in findings or [f"{self.file}: no findings."]))
        if findings:
            raise SystemExit(1)
