"""The command that turns policies into files of other tools, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from haq_env.report.terminal import write


@dataclass(frozen=True)
class Convert:
    """Turn a policy into other tools' files, or a CSV table into a policy."""

    file: Annotated[Positional[Path], arg(metavar="FILE", help="A policy.json, or a .csv table.")]
    out: Annotated[Path, arg(metavar="FILE", help="The file to write.")]
    to: Annotated[str | None, arg(metavar="FORM")] = None
    """csv, hawq (bit_config) or nncf (bitwidth_per_scope); a policy when not given."""

    def run(self) -> None:
        """Write the file."""
        from haq_env.conversion import convert

        write(f"Written: {convert(self.file, self.out, self.to)}\n")
