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
Writes specialization.md and specialization.png into benchmarks/results; for other data than the
digits (--dataset cifar10:FOLDER --network mobilenet_v1_050) their names end in NETWORK_DATASET.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from haq_env.summation import pinned

os.environ |= pinned()  # before torch: others add alike, and get the same digits

import numpy as np
import torch
import tyro
from cross_devices import (
    cross_costs,
    cross_table,
    mean_bits,
    plot_specialization,
    specialized,
)
from result_files import command_line, sums
from rich.console import Console

import haq_env
from haq_env.budget import Budget
from haq_env.data import dataset_name, load_dataset
from haq_env.errors import InputError
from haq_env.evaluation.recipe import FINAL, Recipe
from haq_env.files import replace_file, writing
from haq_env.hardware.load import load_hardware
from haq_env.layers import LayerTable
from haq_env.make import make_task
from haq_env.malloc import keep_freed_memory
from haq_env.networks import load_layers
from haq_env.policy import MAX_BITS, Bits
from haq_env.search import SEARCH
from haq_env.search.ilp import solve
from haq_env.space import BitSpace
from haq_env.task import Task

RESULTS = Path(__file__).parent / "results"
DEVICES = ("bismo-edge", "bismo-cloud", "bitfusion")
NETWORKS = ("mobilenet_v1", "mobilenet_v2")  # of the tables without accuracy


@dataclass(frozen=True)
class Settings:
    """Search for three devices, and run every policy on all of them."""

    network: str = "mobilenet_v1"
    """A network with weights for the data set."""
    dataset: str = "digits"
    """digits, cifar10:FOLDER, or another data set."""
    weights: Path | None = None
    """Folder with NETWORK_DATASET.safetensors; the bundled weights when not given."""
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
    final_steps: int = FINAL.steps
    """Gradient steps of the final finetuning."""
    final_batch: int = FINAL.batch_size
    """Images a step."""
    final_rate: float = FINAL.learning_rate
    """Learning rate of the first step."""
    cache: Path | None = None
    """SQLite file of evaluations, so that a killed run finds its answers again."""
    quick: bool = False
    """The tier ptq_bn, 6 evaluations and no final finetuning: under a minute."""
    out: Path = RESULTS
    """Folder of the results; a quick run leaves the published ones alone."""

    @property
    def writes(self) -> bool:
        """Whether results are written."""
        return not self.quick or self.out != RESULTS

    @property
    def stem(self) -> str:
        """Name of the files, without their endings."""
        if (self.network, self.dataset) == ("mobilenet_v1", "digits"):
            return "specialization"
        return f"specialization_{self.network}_{dataset_name(self.dataset)}".replace(":", "-")

    @property
    def final(self) -> Recipe:
        """The final finetuning."""
        return replace(
            FINAL,
            steps=self.final_steps,
            batch_size=self.final_batch,
            learning_rate=self.final_rate,
        )

    def task(self, device: str) -> Task:
        """Return the task of a device."""
        file = f"{self.network}_{dataset_name(self.dataset)}.safetensors".replace(":", "-")
        return make_task(
            self.network,
            self.dataset,
            device,
            metric="latency",
            budget=self.budget,
            evaluator="ptq_bn" if self.quick else self.evaluator,
            checkpoint=None if self.weights is None else self.weights / file,
            cache=self.cache,
        )

    def check(self) -> None:
        """Refuse what would only fail after the search."""
        if self.evaluations < 1:
            raise InputError(f"evaluations must be 1 or more, not {self.evaluations}.")
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
        evaluator = task.trained()
        final = [evaluator.final(policy, settings.final, settings.seed) for policy in bits]
        columns["final: val, %"] = [f"{one['val']:.2f}" for one in final]
        columns["test, %"] = [f"{one['test']:.2f}" for one in final]
    return columns


def searched(console: Console, settings: Settings) -> int:
    """Search on the trained network, print and plot; return how many columns fail."""
    count = min(6, settings.evaluations) if settings.quick else settings.evaluations
    tasks = {device: settings.task(device) for device in DEVICES}
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
        plot_specialization(titles, first.layers, settings.out / f"{settings.stem}.png")
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
    start = time.perf_counter()
    try:
        settings.check()
        if settings.writes:
            with writing(settings.out):  # now, not in hours
                settings.out.mkdir(parents=True, exist_ok=True)
        missed = searched(console, settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for network in NETWORKS:
        from_tables(console, network, settings.budget)
    console.print(
        f"\nhaq-env {haq_env.__version__}, torch {torch.__version__}, {settings.method}, seed "
        f"{settings.seed}, {sums()}, {time.perf_counter() - start:.0f} s"
    )
    if not settings.writes:
        sys.exit(missed)
    note = load_dataset(settings.dataset).note
    head = f"# One policy for each device\n\n`{command_line(__file__, settings)}`"
    head += f"\n\n{note}" if note else ""
    head += f"\n\n![policies]({settings.stem}.png)\n\n"
    head += f"The picture shows the policies for {' and '.join(DEVICES[:2])}.\n\n"
    replace_file(settings.out / f"{settings.stem}.md", f"{head}```\n{console.export_text()}```\n")
    sys.exit(missed)


if __name__ == "__main__":
    main()
