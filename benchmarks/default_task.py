"""Is the default task a real problem? Uniform against the best known and against random policies.

    python benchmarks/default_task.py [--env HAQ-BISMO-Edge-v0] [--evaluations 200]

Prints, with standard errors over images and over finetuning seeds:
- the float, the 8-bit and the uniform network after the reward's and after the final finetuning;
- the spread of random feasible policies;
- the best policy that several searches find, and its distance to uniform, paired image by image;
- whether 450 held-out images can tell them apart.
Writes benchmarks/results/default_task.md.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from haq_env.summation import pinned

os.environ |= pinned()  # before torch: others add alike, and get the same digits

import numpy as np
import tyro
from result_files import command_line, sums, write_text
from rich.console import Console
from rich.table import Table

import haq_env
from haq_env.evaluation import RECIPES, Recipe
from haq_env.evaluation.recipe import FINAL
from haq_env.make import make_env
from haq_env.malloc import keep_freed_memory
from haq_env.policy import Bits
from haq_env.search import SEARCH
from haq_env.search.history import Trial
from haq_env.task import Task

RESULTS = Path(__file__).parent / "results"
METHODS = ("annealing", "evolution", "ilp-fit")  # the best of all is the best known policy


@dataclass(frozen=True)
class Settings:
    """Measure whether the default task can tell policies apart."""

    env: str = "HAQ-BISMO-Edge-v0"
    """Registered environment."""
    evaluations: int = 200
    """Evaluations of each search for the best known policy."""
    random: int = 60
    """Random feasible policies."""
    finetune_seeds: int = 5
    """Finetuning seeds for every figure that is not the reward itself."""
    results: Path = RESULTS
    """Folder of the table."""


@dataclass(frozen=True)
class Measured:
    """Correct answers [seeds, images] on both held-out splits."""

    val: np.ndarray
    test: np.ndarray

    def text(self, part: str) -> str:
        """Mean accuracy in percent, with the standard errors over images and over seeds."""
        correct = getattr(self, part)
        by_seed = 100 * correct.mean(axis=1)
        images = 100 * correct.mean(axis=0)
        seed_error = by_seed.std(ddof=1) / np.sqrt(len(by_seed))
        image_error = images.std(ddof=1) / np.sqrt(len(images))
        return f"{by_seed.mean():.2f} ± {image_error:.2f} (images) ± {seed_error:.2f} (seeds)"


def measure(task: Task, bits: Bits | None, recipe: Recipe, seeds: range) -> Measured:
    """Finetune with every seed, and keep which images are classified correctly."""
    import torch

    evaluator = task.trained()
    rows: dict[str, list[np.ndarray]] = {"val": [], "test": []}
    for seed in seeds:
        evaluator.final(bits, recipe, seed)
        for part, correct in rows.items():
            images = evaluator.bench.images[part]
            with torch.no_grad():
                answers = [
                    evaluator.bench.network(batch).argmax(dim=1) == labels
                    for batch, labels in images.batches(128)
                ]
            correct.append(torch.cat(answers).numpy())
    return Measured(np.array(rows["val"]), np.array(rows["test"]))


def gain(best: Measured, uniform: Measured, part: str) -> tuple[float, float]:
    """Return the mean gain in points and its standard error, paired image by image and seed."""
    difference = getattr(best, part).astype(float) - getattr(uniform, part).astype(float)
    per_image, per_seed = difference.mean(axis=0), difference.mean(axis=1)
    error = np.hypot(
        per_image.std(ddof=1) / np.sqrt(per_image.size),
        per_seed.std(ddof=1) / np.sqrt(per_seed.size),
    )
    return 100 * float(difference.mean()), 100 * float(error)


def main() -> None:
    """Measure, print, write; exit with 1 if the task is no real problem."""
    keep_freed_memory()
    import torch

    torch.set_num_threads(1)  # sums depend on the number of threads; one repeats elsewhere
    settings = tyro.cli(Settings)
    console = Console(record=True, width=110)
    task = make_env(settings.env).task
    recipe, seeds = RECIPES["finetune"], range(1000, 1000 + settings.finetune_seeds)
    start = time.perf_counter()

    random = SEARCH["random"](task, settings.random + 1, 0)
    spread = np.array([trial.accuracy for trial in random[1:]])
    histories = {name: SEARCH[name](task, settings.evaluations, 0) for name in METHODS}
    best: Trial = max((h.best for h in histories.values()), key=lambda trial: trial.accuracy)

    table = Table("policy", "finetuning", "held-out (val), %", "test, %", title=settings.env)
    policies = {
        "float": None,
        "8 bits": task.space.highest,
        "uniform": task.uniform(),
        "best": best.bits,
    }
    found = {}
    for label, used in (("reward", recipe), ("final", FINAL)):
        for name, bits in policies.items():
            if name == "float" and label == "final":
                continue
            steps = Recipe(steps=0) if name == "float" else used
            result = found[name, label] = measure(task, bits, steps, seeds)
            about = "none, batch norm again" if bits is None else f"{label}: {steps.steps} steps"
            table.add_row(name, about, result.text("val"), result.text("test"))
    console.print(table)
    console.print(
        f"{len(spread)} random feasible policies (search reward): mean {spread.mean():.2f}, "
        f"standard deviation {spread.std(ddof=1):.2f}, {spread.min():.2f} to {spread.max():.2f} %"
    )
    for name, history in histories.items():
        path = ", ".join(f"{a:.1f}" for a in history.best_so_far()[:: max(1, len(history) // 8)])
        console.print(f"{name}, {len(history)} evaluations, best so far: {path}")
    console.print(
        f"best policy: w {best.w_bits}, a {best.a_bits}, cost {best.cost_ratio:.4f} of 8 bits"
    )

    checks = [("random policies spread by 5 points or more", bool(np.ptp(spread) >= 5))]
    for label in ("reward", "final"):
        for part in ("val", "test"):
            points, error = gain(found["best", label], found["uniform", label], part)
            console.print(
                f"best minus uniform, {label}, {part}: {points:+.2f} ± {error:.2f} points"
            )
            checks.append(
                (f"{label}, {part}: gain of 2 points or more, above two standard errors",
                 points >= 2 and points > 2 * error)
            )  # fmt: skip
    for text, met in checks:
        console.print(f"{'met' if met else 'NOT MET'}: {text}")
    console.print(
        f"haq-env {haq_env.__version__}, seeds {seeds.start} to {seeds.stop - 1}, "
        f"{sums()}, {time.perf_counter() - start:.0f} s"
    )
    text = f"# The default task\n\n`{command_line(__file__, settings)}`\n\n```\n"
    write_text(settings.results / "default_task.md", text + console.export_text() + "```\n")
    sys.exit(not all(met for _, met in checks))


if __name__ == "__main__":
    main()
