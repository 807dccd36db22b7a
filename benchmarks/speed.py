"""How fast this package is against HAQ written down plainly, on this machine.

    python benchmarks/speed.py [--only evaluation] [--quick]

What is compared with is benchmarks/plain_haq.py, which says where each of its parts comes from,
and torch's eager float network in its default layout. Contenders take turns in one process, and a
ratio is the median over the turns of the ratios of processor time, one thread, so that other work
on the machine counts little; ratios of wall time stand beside them. Every section is written into
benchmarks/results/speed.md with the command that made it; --only replaces one section there, and
--quick, with smaller networks and fewer turns, writes nothing. --out keeps the figures of another
processor apart. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import inspect
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
import speed_network
import speed_search
import torch
import tyro
from rich.console import Console
from rich.table import Table
from speed_measuring import SEED, Row

import haq_env
from haq_env.versions import processor

RESULTS = Path(__file__).parent / "results" / "speed.md"
HEAD = """# Speed

`python benchmarks/speed.py`, or `--only SECTION` for one of them. Ratios are of processor time,
medians over turns of each turn's ratio; behind "~" are the medians of both sides, whose ratio can
be another one. What is compared with is `benchmarks/plain_haq.py`.
"""

# Each takes "quick" and the number of episodes of a search.
SECTIONS: dict[str, Callable[[bool, int], list[Row]]] = {
    each.__name__: each
    for each in (
        speed_network.evaluation,
        speed_network.inference,
        speed_network.step,
        speed_search.episode,
        speed_search.search,
        speed_search.prefix,
        speed_network.calibration,
        speed_network.kmeans,
        speed_search.overhead,
        speed_network.growth,
        speed_network.cuda,
    )
}

Section = Literal[
    "evaluation",
    "inference",
    "step",
    "episode",
    "search",
    "prefix",
    "calibration",
    "kmeans",
    "overhead",
    "growth",
    "cuda",
]


@dataclass(frozen=True)
class Settings:
    """Measure the speed of this package against HAQ written down plainly."""

    only: Section | None = None
    """Run one section."""
    quick: bool = False
    """Smaller networks and fewer turns: under two minutes in all, not for the record."""
    episodes: int = 300
    """Of the section `search`."""
    out: Path = RESULTS
    """File of the results."""


def machine() -> str:
    """Say where and with what this was measured."""
    return (
        f"{processor()}, {os.cpu_count()} cores, one thread; "
        f"haq-env {haq_env.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"scikit-learn {sklearn.__version__}, Python {platform.python_version()}; seed {SEED}"
    )


def report(name: str, rows: list[Row], seconds: float) -> str:
    """Print a section and return it as it is written down."""
    console = Console(record=True, width=120)
    table = Table("figure", "target", "measured", "", title=name)
    for row in rows:
        verdict = "" if row.met is None else "met" if row.met else "NOT MET"
        table.add_row(row.figure, row.target, row.measured, verdict)
    console.print(table)
    console.print(f"{seconds:.0f} s, load {os.getloadavg()[0]:.1f}; {machine()}")
    about = str(SECTIONS[name].__doc__)
    return f"## {name}\n\n{inspect.cleandoc(about)}\n\n```\n{console.export_text()}```\n"


def write(out: Path, name: str, text: str) -> None:
    """Replace one section of the results."""
    before = out.read_text("utf-8") if out.exists() else ""
    parts = {part.split("\n", 1)[0]: "## " + part for part in before.split("\n## ")[1:]}
    parts[name] = text
    body = "\n".join(parts[each].rstrip("\n") + "\n" for each in SECTIONS if each in parts)
    missing = [each for each in SECTIONS if each not in parts]
    note = f"Sections that have not been run: {', '.join(missing)}.\n\n" if missing else ""
    out.write_text(f"{HEAD}\n{note}{body}", "utf-8")


def main() -> None:
    """Measure, print, write."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(1)
    missed = 0
    for name in [settings.only] if settings.only else SECTIONS:
        start = time.perf_counter()
        rows = SECTIONS[name](settings.quick, settings.episodes)
        text = report(name, rows, time.perf_counter() - start)
        missed += sum(row.met is False for row in rows)
        if not settings.quick:
            write(settings.out, name, text)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
