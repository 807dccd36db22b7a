"""Is a policy that was searched for one device worse on another? HAQ's table of three devices.

    python benchmarks/specialization.py [--method ilp-fit] [--evaluations 20] [--budget w4a4]

Searches one policy for each device for the same trained network, then runs every policy on every
device (Wang et al., "Hardware-Centric AutoML for Mixed-Precision Quantization", IJCV 2020, table
5). A policy's latency is limited on its own device only. The limits are equally strict: what one
uniform policy takes on each device. Its widths should be ones that all devices have (2, 4, 8): on
BitFusion, which has no other, w3a3 costs as much as w4a4 and would be the looser limit.
Latencies compare only at like accuracy, so accuracies stand beside them. A lopsided limit
(w2a4, w4a2) is not equally strict: found accuracies then lie far apart, and the diagonal fails.

Each column's least latency must be on the diagonal; the exit code says in how many it is not.
The same is then shown for both MobileNets on ImageNet's shapes, from the cost tables alone: every
side of every layer is taken to lose 4^-bits, and no accuracy is claimed. Here the loss is the
same for all, and not the name of the limit: within the latency of w4a4 the edge's policy loses a
third less than the cloud's, and for that the cloud's is 5 percent faster on the edge than its own.
Writes specialization.md and specialization.png into benchmarks/results.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console

import haq_env
from haq_env.budget import Budget
from haq_env.errors import InputError
from haq_env.evaluation.recipe import FINAL
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.hardware.load import load_hardware
from haq_env.layers import LayerTable
from haq_env.memory import keep_freed_memory
from haq_env.networks import load_layers
from haq_env.policy import MAX_BITS, Bits
from haq_env.report.specialization import (
    cross_costs,
    cross_table,
    mean_bits,
    plot_specialization,
    specialized,
)
from haq_env.search import SEARCH
from haq_env.search.ilp import solve
from haq_env.space import BitSpace
from haq_env.task import Task, make_task

RESULTS = Path(__file__).parent / "results"
DEVICES = ("bismo-edge", "bismo-cloud", "bitfusion")
NETWORKS = ("mobilenet_v1", "mobilenet_v2")  # of the tables without accuracy


@dataclass(frozen=True)
class Settings:
    """Search for three devices, and run every policy on all of them."""

    method: str = "ilp-fit"
    """Search method (see `haq_env.search.SEARCH`)."""
    evaluations: int = 20
    """Evaluations of each search."""
    budget: str = "w4a4"
    """Uniform policy whose latency on each device is the limit there."""
    evaluator: str = "finetune"
    """Tier of the evaluator."""
    seed: int = 0
    """Of the searches and of the final finetuning."""
    quick: bool = False
    """The tier ptq_bn, 6 evaluations and no final finetuning: under a minute."""
    out: Path = RESULTS
    """Folder of the results; a quick run leaves the published ones alone."""

    @property
    def writes(self) -> bool:
        """Whether results are written."""
        return not self.quick or self.out != RESULTS

    def check(self) -> None:
        """Refuse what would only fail after the search."""
        SEARCH[self.method]
        if not re.fullmatch(r"w[1-8]a[1-8]", self.budget):
            raise InputError(f"budget must be that of a uniform policy (w4a4), not {self.budget}.")


def verdict(console: Console, costs: np.ndarray) -> int:
    """Say for each device how its own policy compares there; return how many fail."""
    met = specialized(costs)
    for column, device in enumerate(DEVICES):
        others = np.delete(costs[:, column], column)
        ratio = others.min() / costs[column, column]
        console.print(
            f"{'met' if met[column] else 'NOT MET'}: {device}'s own policy is the fastest there; "
            f"the best other takes {ratio:.3f} of its latency"
        )
    return int((~met).sum())


def means(console: Console, found: dict[str, Bits], layers: LayerTable) -> None:
    """Print the mean bits of depthwise and of pointwise layers."""
    for device, bits in found.items():
        for kind, (w, a) in mean_bits(bits, layers).items():
            console.print(f"{device}, {kind}: {w:.2f} weight bits, {a:.2f} activation bits")


def accuracies(task: Task, bits: list[Bits], settings: Settings) -> dict[str, list[str]]:
    """Return top-1 by column: inside the search, and after the final finetuning."""
    columns = {"val, %": [f"{task.evaluate(policy).accuracy:.2f}" for policy in bits]}
    if not settings.quick:
        assert isinstance(task.evaluator, TrainedEvaluator)
        final = [task.evaluator.final(policy, FINAL, settings.seed) for policy in bits]
        columns["final: val, %"] = [f"{one['val']:.2f}" for one in final]
        columns["test, %"] = [f"{one['test']:.2f}" for one in final]
    return columns


def searched(console: Console, settings: Settings) -> int:
    """Search on the digits network, print and plot; return how many columns fail."""
    tier = "ptq_bn" if settings.quick else settings.evaluator
    count = min(6, settings.evaluations) if settings.quick else settings.evaluations
    tasks = {
        device: make_task(hardware=device, metric="latency", budget=settings.budget, evaluator=tier)
        for device in DEVICES
    }
    found: dict[str, Bits] = {}
    for device, task in tasks.items():
        start = time.perf_counter()
        history = SEARCH[settings.method](task, count, settings.seed)
        found[device] = history.best.bits
        console.print(
            f"{device}: w {history.best.w_bits}, a {history.best.a_bits}; limit "
            f"{1e3 * task.budget.limit:.4g} us ({task.budget.ratio:.3f} of 8 bits), "
            f"{time.perf_counter() - start:.0f} s"
        )
    first = tasks[DEVICES[0]]
    costs = cross_costs(found, {device: task.costs for device, task in tasks.items()})
    columns = accuracies(first, [*found.values(), first.uniform()], settings)
    uniform = ", ".join(f"{head} {cells.pop()}" for head, cells in columns.items())
    console.print(cross_table(1e3 * costs, DEVICES, "us", columns))
    console.print(f"the uniform policy {settings.budget}: {uniform}")
    means(console, found, first.layers)
    titles = {
        f"{device}: {columns['val, %'][row]} % top-1": found[device]
        for row, device in enumerate(DEVICES[:2])
    }
    if settings.writes:
        settings.out.mkdir(parents=True, exist_ok=True)
        plot_specialization(titles, first.layers, settings.out / "specialization.png")
    return verdict(console, costs)


def from_tables(console: Console, network: str, budget: str) -> None:
    """Find the fastest policies of a common loss, 4^-bits on every side, and print the same table.

    The solutions are exact, so the diagonal holds by construction; how far the others are from it
    is the result.
    """
    layers = load_layers(network)
    space = BitSpace.of(layers)
    tables = {device: load_hardware(device).cost_table(layers) for device in DEVICES}
    side = 4.0 ** -np.arange(1, MAX_BITS + 1)
    loss = np.tile(side[:, None] + side, (len(layers), 1, 1))
    named = Budget.of(tables[DEVICES[0]], space, budget).named
    assert named is not None  # see `Settings.check`
    rows, most = np.arange(len(layers)), space.uniform(*named) - 1
    limit = float(loss[rows, most[:, 0], most[:, 1]].sum())
    found = {
        device: solve(table.grid("latency"), loss, space.pairs(), limit).bits
        for device, table in tables.items()
    }
    costs = cross_costs(found, tables)
    console.print(f"\n{network} at 224 px, every policy with at most the loss of {budget}:")
    console.print(cross_table(costs, DEVICES, "ms", {}))
    means(console, found, layers)
    verdict(console, costs)


def main() -> None:
    """Search, print, write; the exit code is the number of columns that are not met."""
    keep_freed_memory()
    settings = tyro.cli(Settings)
    torch.set_num_threads(1)  # sums depend on the number of threads; one repeats elsewhere
    console = Console(record=True, width=120)
    try:
        settings.check()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    start = time.perf_counter()
    missed = searched(console, settings)
    for network in NETWORKS:
        from_tables(console, network, settings.budget)
    console.print(
        f"\nhaq-env {haq_env.__version__}, torch {torch.__version__}, {settings.method}, seed "
        f"{settings.seed}, {time.perf_counter() - start:.0f} s"
    )
    if not settings.writes:
        sys.exit(missed)
    command = " ".join(["python benchmarks/specialization.py", *sys.argv[1:]])
    head = f"# One policy for each device\n\n`{command}`\n\n![policies](specialization.png)\n\n"
    text = f"{head}```\n{console.export_text()}```\n"
    (settings.out / "specialization.md").write_text(text, encoding="utf-8")
    sys.exit(missed)


if __name__ == "__main__":
    main()
