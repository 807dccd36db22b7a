"""Does the search beat uniform bits? Three seeds of the default search, equal final finetuning.

    python benchmarks/search.py [--algo sac] [--seeds 0 1 2] [--out runs/search]

Runs train_agent.py once for each seed (a finished run in the folder is taken as it is, a killed
one goes on), reads what it wrote and prints the gain of the found over the uniform policy after
the same final finetuning. Writes benchmarks/results/search.md; exits with 1 if a seed gains less
than one point on the held-out images, or takes longer than ten minutes of a processor, whatever
else runs beside it, or a time that is not known, since a killed run has gone on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from result_files import command_line, write_text
from rich.console import Console
from rich.table import Table

from haq_env.summation import pinned

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Settings:
    """Search with several seeds and compare with uniform bits."""

    env: str = "HAQ-BISMO-Edge-v0"
    """Registered environment."""
    algo: Literal["ddpg", "td3", "sac"] = "sac"
    """Algorithm of Stable-Baselines3."""
    episodes: int = 300
    """Evaluations of each search, beside the uniform policy."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the agent and of the final finetuning."""
    out: Path = Path("runs/search")
    """Folder of the runs."""
    results: Path = RESULTS
    """Folder of the table."""


def run(settings: Settings, seed: int) -> tuple[dict[str, Any], float]:
    """Search with one seed; return the policy file and the processor seconds that it took."""
    folder = settings.out / f"{settings.env}-{settings.algo}-{settings.episodes}-{seed}"
    clock = folder / "seconds.txt"
    if not clock.exists():
        command = [sys.executable, str(ROOT / "train_agent.py"), "--resume"]
        command += ["--arithmetic", "avx2"] if pinned() else []  # others get the same digits
        command += ["--env", settings.env, "--algo", settings.algo, "--seed", str(seed)]
        command += ["--episodes", str(settings.episodes), "--out", str(folder)]
        resumed = (folder / "episodes.csv").exists()  # then only a part of it is timed
        start = _processor_seconds()
        child = subprocess.run(command, check=False)
        if child.returncode:  # it has said why
            sys.exit(child.returncode)
        seconds = float("nan") if resumed else _processor_seconds() - start
        clock.write_text(f"{seconds:.1f}\n", encoding="utf-8")
    record = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    return record, float(clock.read_text(encoding="utf-8"))


def _processor_seconds() -> float:
    """Of all processes that this one has started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def text(values: list[float]) -> str:
    """Mean and standard error over final finetuning seeds."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"


def main() -> None:
    """Run, print, write."""
    settings = tyro.cli(Settings)
    console = Console(record=True, width=110)
    columns = ["seed", "reward: uniform", "found"]
    for part in ("val", "test"):
        columns += [f"final, {part}: uniform", "found", "gain"]
    table = Table(*columns, "seconds", title=f"{settings.env}, {settings.algo}")
    failed = False
    for seed in settings.seeds:
        record, seconds = run(settings, seed)
        accuracy = record["accuracy"]
        uniform, found = accuracy["final"]["uniform"], accuracy["final"]["found"]
        gains = {part: np.mean(found[part]) - np.mean(uniform[part]) for part in ("val", "test")}
        failed |= bool(gains["val"] < 1 or not seconds <= 600)
        table.add_row(
            str(seed), f"{accuracy['uniform_search']:.2f}", f"{accuracy['search']:.2f}",
            text(uniform["val"]), text(found["val"]), f"{gains['val']:+.2f}",
            text(uniform["test"]), text(found["test"]), f"{gains['test']:+.2f}", f"{seconds:.0f}",
        )  # fmt: skip
    console.print(table)
    state = "NOT MET" if failed else "met"
    console.print(f"{state}: every seed gains 1 point (val) in 10 minutes of one processor")
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    console.print(f"{settings.episodes} episodes; {versions}")
    head = f"# Search against uniform bits\n\n`{command_line(__file__, settings)}`\n\n```\n"
    write_text(settings.results / "search.md", head + console.export_text() + "```\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
