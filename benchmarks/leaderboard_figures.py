"""Figures of the leaderboard that are measured by hand: what was aimed at, what came out, where.

A benchmark with ``--record`` puts its row into benchmarks/results/leaderboard/figures.md.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from leaderboard_folders import REPORT
from result_files import write_text

from haq_env.versions import processor

FILE = REPORT / "figures.md"
HEAD = """# Figures of the leaderboard

Each row is written by its command, on the machine that it names.

"""
COLUMNS = ("figure", "target", "measured", "", "date", "commit", "processor", "load", "command")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: what is measured; a file has one row for each.
        target: what it is held against, in words.
        measured: what came out, in words.
        met: whether that is enough.
        command: what measures it.
    """

    name: str
    target: str
    measured: str
    met: bool
    command: str

    @property
    def verdict(self) -> str:
        """``"met"`` or ``"NOT MET"``."""
        return "met" if self.met else "NOT MET"

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}, target {self.target}: {self.verdict}"


def load() -> float:
    """Return how many processes want a core, of the last minute; asked before measuring."""
    return os.getloadavg()[0]


def tell(figures: Sequence[Figure], load_before: float, record: bool, path: Path = FILE) -> bool:
    """Print figures, and put them into a file.

    Args:
        figures: what was measured.
        load_before: `load` before that.
        record: whether the file is written.
        path: the file; other figures in it stay as they are.

    Returns:
        Whether all are met.

    Raises:
        InputError: the file cannot be written.
    """
    for figure in figures:
        print(figure, flush=True)
    if record:
        rows = _rows(path)
        for figure in figures:
            rows[figure.name] = _row(figure, load_before)
        rule = ["---"] * len(COLUMNS)
        table = [_line(cells) for cells in (COLUMNS, rule, *rows.values())]
        write_text(path, HEAD + "".join(table))
        print(f"Written: {path}")
    return all(figure.met for figure in figures)


def _row(figure: Figure, load_before: float) -> list[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        figure.name,
        figure.target,
        figure.measured,
        figure.verdict,
        f"{datetime.now(timezone.utc):%Y-%m-%d}",
        _commit(),
        f"{processor()}, {cores} cores",
        f"{load_before:.1f}",
        f"`{figure.command}`",
    ]


def _rows(path: Path) -> dict[str, list[str]]:
    """Read the rows of a file by the name of their figure; none if there is no file."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row for row in cells}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"


def _commit() -> str:
    """Name the state of this package: its commit, and whether something was changed since."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        name = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return "unknown"
    return f"{name} and changes" if changed else name
