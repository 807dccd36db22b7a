"""What sensitivity tables are worth: their rank correlation, and what searches find with them.

    python benchmarks/sensitivities.py [--evaluator ptq_bn] [--evaluations 2 10 50] [--seed 0]

Prints, for one task:
- Spearman's rho between each table's prediction and the measured accuracy of random policies of
  equal cost, the same with the number of bits as the prediction, and what the table took;
- the best accuracy inside the search after 2, 10 and 50 evaluations, table searches beside
  uniform bits and evolution. Every search is run anew for every number of evaluations.
Writes benchmarks/results/sensitivities_EVALUATOR.md.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from haq_env.summation import pinned

os.environ |= pinned()  # before torch: others add alike, and get the same digits

import numpy as np
import torch
import tyro
from result_files import command_line, sums, write_text
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

import haq_env
from haq_env.policy import Bits
from haq_env.search import SEARCH
from haq_env.search.sensitivity import METHODS, measure_sensitivity
from haq_env.task import Task

RESULTS = Path(__file__).parent / "results"
SEARCHES = (
    "uniform",
    "evolution",
    "greedy",
    "greedy-sensitivity",
    "ilp-kl",
    "ilp-fit",
    "ilp-hawq-v2",
    "ilp-hawq",
)


@dataclass(frozen=True)
class Settings:
    """Compare sensitivity tables, and the searches that use them."""

    evaluator: str = "ptq_bn"
    """Tier of the evaluator."""
    evaluations: tuple[int, ...] = (2, 10, 50)
    """Evaluations of each search, the uniform policy included."""
    policies: int = 40
    """Random policies of equal cost for the rank correlation."""
    seed: int = 0
    """Of everything."""
    results: Path = RESULTS
    """Folder of the table."""


def equal_cost(task: Task, count: int, seed: int) -> Bits:
    """Draw policies that spend the budget to within one percent, int64 [count, L, 2]."""
    rng = np.random.default_rng(seed)
    found: list[Bits] = []
    while len(found) < count:
        drawn = task.project(task.space.random(rng, 4 * count))
        full = task.budget.cost(drawn) >= 0.99 * task.budget.limit
        found.extend(drawn[full])
    return np.array(found[:count])


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(1)  # results then repeat on another machine
    console = Console(record=True, width=100)
    start = time.perf_counter()
    task = haq_env.make_task(evaluator=settings.evaluator)

    policies = equal_cost(task, settings.policies, settings.seed)
    accuracy = np.array([task.evaluate(bits).accuracy for bits in policies])
    costs = task.budget.cost(policies) / task.budget.limit
    ranks = Table(
        "table",
        "rho",
        "seconds",
        "evaluations",
        title=f"Rank correlation over {len(policies)} policies of {costs.min():.3f} to "
        f"{costs.max():.3f} of the budget, {accuracy.min():.1f} to {accuracy.max():.1f} %",
    )
    ranks.add_row("sum of bits", f"{spearmanr(policies.sum((1, 2)), accuracy)[0]:.2f}", "0", "0")
    for name in METHODS:
        found = measure_sensitivity(task, name, settings.seed)
        rho = spearmanr(-found.predict(policies), accuracy)[0]
        took, charge = found.charge
        ranks.add_row(name, f"{rho:.2f}", f"{took:.1f}", f"{charge:.0f}")
    console.print(ranks)

    best = Table(
        "search",
        *(f"{count} evaluations" for count in settings.evaluations),
        "table, in evaluations",
        title=f"Best accuracy inside the search, %: evaluator {settings.evaluator}, "
        f"seed {settings.seed}",
    )
    for name in SEARCHES:
        cells, spent = [], "0"
        for count in settings.evaluations:
            history = SEARCH[name](task, count, settings.seed)
            cells.append(f"{history.best.accuracy:.2f}")
            if history.charge is not None:
                spent = f"{history.charge.evaluations:.0f}"
        best.add_row(name, *cells, spent)
    console.print(best)
    console.print(f"haq-env {haq_env.__version__}, {sums()}, {time.perf_counter() - start:.0f} s")
    command = command_line(__file__, settings)
    text = f"# Sensitivity tables\n\n`{command}`\n\n```\n{console.export_text()}```\n"
    write_text(settings.results / f"sensitivities_{settings.evaluator}.md", text)


if __name__ == "__main__":
    main()
