"""HAQ's Tables 3 to 6 on networks that can be trained here: searched bits against uniform bits.

    python benchmarks/reproduce_haq.py --dataset cifar10:FOLDER [--minutes 60] [--device cuda]
    python benchmarks/reproduce_haq.py --dataset cifar10:FOLDER --quick

A cell is a network, a block (a machine and what is limited on it) and a budget, which is what a
uniform policy costs. In each cell every method searches with equally many evaluations; what it
found and the uniform policy get the same final finetuning, as do 8 bits and the float network.
Call it again after a kill, Ctrl-C or --minutes and it goes on: no evaluation, no finetuning and no
cell is computed twice. --report-only computes nothing. Exits with 3 where --minutes ended it.

Writes DATASET.md (tables), DATASET.csv (every row) and DATASET.json (settings) into
benchmarks/results/reproduce. Cells in that CSV count as run, so a table can be filled on several
machines. Several calls may work at once on different --networks or --blocks with one --out; call
--report-only for all of them when they are done.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import tyro
from haq_board import Board
from haq_cells import (
    Job,
    Lab,
    Protocol,
    TimeOver,
    load,
    references,
)
from haq_claims import verdicts
from haq_paper import BLOCKS, TableCell
from haq_results import UNIFORM, Result, read_results, write_results
from haq_settings import Settings, checked, heading, images, shown_cells, trained
from haq_tables import claims_table, gains_table, network_section
from result_files import keep_settings, weights_digest
from rich.console import Console

from haq_env.data import Dataset
from haq_env.errors import InputError
from haq_env.evaluation.cache import EvaluationCache
from haq_env.evaluation.fingerprint import TRAINING_STEP
from haq_env.files import replace_file
from haq_env.malloc import keep_freed_memory
from haq_env.networks.bundled import find_trained
from haq_env.versions import processor

EVERY = 20.0  # seconds between progress lines


def all_jobs(settings: Settings) -> list[Job]:
    """List everything in order; a network's references stand before its first cell."""
    jobs: list[Job] = []
    for cell in settings.cells:
        quantizer = BLOCKS[cell.block].quantizer
        needed = references(cell.network, [quantizer])
        jobs += [job for job in needed if job not in jobs]
        jobs += [Job(*cell, method, quantizer) for method in (UNIFORM, *settings.methods)]
    return jobs


class Progress:
    """Lines that say what is done and how long the rest will take.

    Args:
        console: where to.
        settings: the number of evaluations, and when the time is over.
    """

    def __init__(self, console: Console, settings: Settings) -> None:
        self._console, self._settings = console, settings
        self._deadline = time.monotonic() + 60 * settings.minutes
        self._seconds: dict[str, list[float]] = {"evaluation": [], "final finetuning": []}
        self._todo: list[Job] = []
        self._said = time.monotonic()
        self._count = 0

    def begin(self, todo: list[Job]) -> None:
        """Start the first of the jobs that are left."""
        self._todo, self._count = todo, 0

    def watch(self, what: str, seconds: float | None) -> None:
        """Note an evaluation or a finetuning; raise TimeOver before one that is too late."""
        if seconds is None:
            if time.monotonic() >= self._deadline:
                raise TimeOver
            return
        if seconds:  # a remembered answer says nothing of the time
            self._seconds[what].append(seconds)
        self._count += what == "evaluation"
        if time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            done = f"{self._count} evaluations" if what == "evaluation" else "finetuning"
            self.say(f"{self._todo[0].name}: {done}", end="...")

    def say(self, text: str, end: str = "") -> None:
        """Print a line with the time and the time left."""
        clock = time.strftime("%H:%M:%S")
        self._console.print(f"{clock} {text}{end} {self.left()}", highlight=False)

    def left(self) -> str:
        """Estimate what is left: evaluations and finetunings as long as those so far."""
        means = {k: sum(v[-50:]) / len(v[-50:]) for k, v in self._seconds.items() if v}
        if len(means) < 2:
            return f"({len(self._todo)} jobs left)"
        searches = sum(job.searches for job in self._todo)
        evaluations = searches * self._settings.evaluations - min(
            self._count, self._settings.evaluations
        )
        finals = len(self._todo) * self._settings.seeds
        if self._settings.candidates > 1:
            finals += searches * self._settings.candidates
        seconds = max(0, evaluations) * means["evaluation"] + finals * means["final finetuning"]
        return f"({len(self._todo)} jobs left, at most {seconds / 60:.0f} min)"


def collected(settings: Settings) -> dict[Job, Result]:
    """Collect what has been run with the present weights: files, and the published CSV."""
    jobs = all_jobs(settings)
    weights = {}
    for network in settings.networks:
        path = find_trained(network, settings.dataset, settings.checkpoint(network)).checkpoint
        assert path is not None
        weights[network] = weights_digest(path)
    path = settings.results / f"{settings.name}.csv"
    published: dict[tuple[str, ...], list[Result]] = {}
    for row in read_results(path) if path.exists() else []:
        published.setdefault(row.what, []).append(row)
    here = processor(), TRAINING_STEP
    known = {}
    for job in jobs:
        what = (job.network, job.block, job.budget, job.method, "" if job.block else job.quantizer)
        results = [load(job, settings.out / settings.name), *published.get(what, [])]
        there = [r for r in results if r is not None and r.weights == weights[job.network]]
        if there:
            known[job] = min(there, key=lambda result: result.sums != here)
    return known


def finished(settings: Settings) -> dict[Job, Result]:
    """Choose what need not be run here of what has been `collected`.

    What searches are held against counts as run only with this machine's sums, while there is a
    search left that will be.
    """
    known, jobs, here = collected(settings), all_jobs(settings), (processor(), TRAINING_STEP)
    left = [job for job in jobs if job.searches and job not in known]
    return {
        job: result
        for job, result in known.items()
        if result.sums == here or job.searches or not any(job.serves(other) for other in left)
    }


def same_protocol(settings: Settings, protocol: Protocol) -> None:
    """Keep the settings beside the results, and refuse to mix two of them."""
    published = settings.results / f"{settings.name}.json"
    keep_settings(asdict(protocol), published, settings.out / settings.name / "protocol.json")


def fill(settings: Settings, data: Dataset, protocol: Protocol, console: Console) -> bool:
    """Run what is missing; return whether all is done."""
    jobs, done = all_jobs(settings), finished(settings)
    todo = [job for job in jobs if job not in done]
    console.print(f"{len(jobs)} jobs in {len(settings.cells)} cells, {len(done)} of them finished")
    progress = Progress(console, settings)
    folder = settings.out / settings.name
    cache = EvaluationCache(settings.out / "cache.sqlite")
    labs: dict[str, Lab] = {}
    try:
        for number, job in enumerate(todo):
            progress.begin(todo[number:])
            progress.watch("evaluation", None)
            if job.network not in labs:
                weights = settings.checkpoint(job.network)
                labs.clear()  # one network in memory is enough
                labs[job.network] = Lab(
                    *(job.network, data, protocol, weights, settings.device, folder),
                    *(cache, progress.watch),
                )
            result = labs[job.network].run(job)
            progress.begin(todo[number + 1 :])
            mean, _ = result.mean_and_error("test")
            progress.say(f"{job.name}: {mean:.2f} % on the test images, {result.seconds:.0f} s")
            # after every cell, so that a kill leaves tables too
            report(settings, protocol, collected(settings))
    except TimeOver:
        console.print("the time is over: call it again to go on")
        return False
    return True


def same_arithmetic(rows: Iterable[Result]) -> None:
    """Refuse to hold a policy that integers measured against one that floats did."""
    first: dict[tuple[str, str], Result] = {}
    for row in rows:
        other = first.setdefault((row.network, row.quantizer), row)
        if row.arithmetic != other.arithmetic:
            raise InputError(
                f"{row.what} was measured in {row.arithmetic} and {other.what} in "
                f"{other.arithmetic}: on a machine without integer kernels give --inference float, "
                "other --out and other --results."
            )


def report(settings: Settings, protocol: Protocol, found: dict[Job, Result]) -> Path:
    """Write tables and rows; return the file of the tables."""
    path = settings.results / f"{settings.name}.csv"
    rows = {each.key: each for each in (read_results(path) if path.exists() else [])}
    now = {result.network: result.weights for result in found.values()}
    # rows of weights that have been trained anew since are worth nothing beside these
    rows = {k: row for k, row in rows.items() if row.weights == now.get(row.network, row.weights)}
    rows |= {result.key: result for result in found.values()}
    same_arithmetic(rows.values())
    write_results(rows.values(), path)
    ran = [row for row in rows.values() if row.block]
    others = [row.method for row in ran if row.method != UNIFORM]
    board = Board(rows.values(), tuple(dict.fromkeys((*settings.methods, *others))))
    cells = shown_cells(settings, [TableCell(row.network, row.block, row.budget) for row in ran])
    parts = [heading(settings, protocol, board, rows.values())]
    parts += ["## Gains\n", gains_table(board, cells)]
    parts += ["## Claims\n", claims_table(verdicts(board, cells))]
    run_in = {(row.network, row.block) for row in ran}  # the first table says what was not run
    shown = [cell for cell in cells if cell[:2] in run_in]
    parts += [
        network_section(board, name, shown)
        for name in dict.fromkeys(cell.network for cell in cells)
        if name in {row.network for row in rows.values()}
    ]
    text = path.with_suffix(".md")
    replace_file(text, "\n".join(parts))
    return text


def main() -> None:
    """Run what is missing, then report."""
    keep_freed_memory()
    settings = tyro.cli(Settings, description=__doc__)
    console = Console(width=120)
    torch.set_num_threads(max(1, settings.threads))
    try:
        settings = trained(checked(settings))
        data = images(settings)
        protocol = settings.protocol(data)
        same_protocol(settings, protocol)
        done = True if settings.report_only else fill(settings, data, protocol, console)
        path = report(settings, protocol, collected(settings))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: call it again to go on; all that was measured is kept", file=sys.stderr)
        sys.exit(130)
    text = path.read_text(encoding="utf-8")
    networks = text.find("\n## ", text.index("## Claims"))  # none before anything has been run
    print(text[text.index("## Gains") : networks if networks >= 0 else None])
    print(f"Written: {path}, rows in {path.with_suffix('.csv').name} beside it")
    sys.exit(0 if done else 3)


if __name__ == "__main__":
    main()
