"""Every agent and every method that it must beat, at equal numbers of evaluations.

    python benchmarks/compare_agents.py [--quick] [--tasks ...] [--methods ...] [--seeds ...]

Tasks are the additive yardstick (five instances; seed s takes instance s modulo 5), the embedded
digits task in two tiers, and any registered environment by its id (`HAQ-BitFusion-v0`, or
`HAQ-BitFusion-v0:ptq_bn` for another tier). Runs share one evaluation cache, and a finished run is
a file that is not run again, so the full table can be filled piece by piece: `--minutes 30` starts
nothing new after half an hour, `--report-only` starts nothing at all. Writes raw runs (CSV), tables
(Markdown) and plots to benchmarks/results/compare.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from haq_env.summation import pinned

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers side by side, a core each
os.environ |= pinned()  # likewise: others add alike, and get the same digits

import numpy as np
import tyro
from result_files import versions_line, write_text
from rich.console import Console

from haq_env.agents.methods import RESIDUAL, methods, search_method
from haq_env.errors import InputError
from haq_env.files import replace_file, writing
from haq_env.make import make_env
from haq_env.malloc import keep_freed_memory
from haq_env.processes import abandon, prepare_worker
from haq_env.report.comparison import summary
from haq_env.report.comparison_plots import plot_curves, plot_profile
from haq_env.report.comparison_tables import markdown, table
from haq_env.report.runs import Reference, Run, read_csv, write_csv
from haq_env.task import Task
from haq_env.versions import PACKAGES
from haq_env.yardstick import optimum, yardstick

RESULTS = Path(__file__).parent / "results" / "compare"
INSTANCES = 5
DIGITS = "HAQ-BISMO-Edge-v0"

LINES = 12  # methods in a picture; more cannot be told apart

# methods that may end before their evaluations are spent
ENDING = ("uniform", "greedy", "greedy-sensitivity")

# What the published table holds: task -> seeds, evaluations, methods.
SENSITIVITY = ("ilp-kl", "ilp-fit", "ilp-hawq-v2", "ilp-hawq", "greedy-sensitivity")
CORE = ("uniform", "random", "evolution", "annealing", "ilp-fit", "haq-ddpg", "sac", "residual-ppo")
FREE = tuple(
    name
    for name in methods()
    if name not in SENSITIVITY and (name == "residual-ppo" or not name.startswith(RESIDUAL))
)
PUBLISHED: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "yardstick": (10, 600, FREE),
    "digits:ptq_bn": (10, 300, (*FREE, *SENSITIVITY)),
}
OTHERS = 5, 300, CORE  # other tasks; with finetuning the digits are a track of the leaderboard


@dataclass(frozen=True)
class Job:
    """One run: a method on a task with a seed."""

    task: str
    method: str
    seed: int
    evaluations: int

    def path(self, folder: Path) -> Path:
        """Where its result is kept."""
        return folder / slug(self.task) / str(self.evaluations) / self.method / f"{self.seed}.json"


@dataclass(frozen=True)
class Settings:
    """Compare agents and baselines at equal numbers of evaluations."""

    tasks: tuple[str, ...] = tuple(PUBLISHED)
    """yardstick, digits:ptq_bn, digits:finetune, or ID or ID:TIER of registered environments."""
    methods: tuple[str, ...] = ()
    """Search methods and agents by name; those of the published table when not given."""
    seeds: tuple[int, ...] = ()
    """Seeds of the methods (the finetuning inside the reward has one for all); those of the
    published table when not given."""
    evaluations: int | None = None
    """Policies that each run may measure, the uniform policy included."""
    jobs: int = max(1, min(8, (os.cpu_count() or 2)))
    """Processes."""
    minutes: float = float("inf")
    """Start no run after so many minutes."""
    out: Path = Path("runs/compare")
    """Folder of finished runs and of the evaluation cache."""
    results: Path = RESULTS
    """Folder of raw CSVs, tables and plots; runs that are in it already are kept."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Two seeds, few evaluations, few methods: does everything work here?"""
    report_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Report what has been run."""

    def check(self) -> None:
        """Refuse numbers that make no sense."""
        for name in ("jobs", "evaluations"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} must be 1 or more, not {value}.")

    def jobs_of(self, task: str) -> list[Job]:
        """List the runs of a task, seed by seed, so that a part of them is a fair comparison."""
        if self.quick:
            few = ("random", "evolution", "greedy", "ppo", "residual-ppo")
            names: tuple[str, ...] = few if task == "yardstick" else (*few, "ilp-fit")
            seeds, evaluations = 2, 40
        else:
            seeds, evaluations, names = PUBLISHED.get(task, OTHERS)
        evaluations = self.evaluations or evaluations
        chosen = self.methods or names
        return [
            Job(task, name, seed, evaluations)
            for seed in self.seeds or range(seeds)
            for name in chosen
        ]


def slug(task: str) -> str:
    """Name of a task's files."""
    return task.replace(":", "-").removesuffix("-v0").replace("-v0-", "-")


def make(task: str, seed: int, cache: Path | None = None) -> Task:
    """Build a task by name."""
    if task == "yardstick":
        return yardstick(seed % INSTANCES)
    id, _, tier = task.partition(":")
    given = {"evaluator": tier or None, "cache": cache}
    settings = {name: value for name, value in given.items() if value is not None}
    return make_env(DIGITS if id == "digits" else id, **settings).task


def work(job: Job, folder: Path) -> Job:
    """Run one job, and write down what came out."""
    import torch

    torch.set_num_threads(1)
    task = make(job.task, job.seed, folder / "cache.sqlite")
    task.float_accuracy  # noqa: B018  # loads network and images, which is no part of a search
    start = time.perf_counter()
    history = search_method(job.method)(task, job.evaluations, job.seed)
    seconds = time.perf_counter() - start
    record = {
        **asdict(job),
        "charge": 0.0 if history.charge is None else history.charge.evaluations,
        "seconds": seconds - sum(trial.seconds for trial in history),
        "trials": [[t.w_bits, t.a_bits, t.accuracy] for t in history],
    }
    write_text(job.path(folder), json.dumps(record) + "\n")
    return job


def load(job: Job, folder: Path) -> Run:
    """Read a finished run."""
    path = job.path(folder)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        [record[name] for name in ("trials", "charge", "seconds")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}): remove it, and it is run again."
        ) from error
    best = np.maximum.accumulate([accuracy for *_, accuracy in record["trials"]])
    # a cache may know policies of other runs too: what counts is what this run has asked twice
    repeats = len(best) - len({(w, a) for w, a, _ in record["trials"]})
    charge, seconds = record["charge"], record["seconds"]
    return Run(strata(job), job.method, job.seed, best, charge, seconds, repeats)


def strata(job: Job) -> str:
    """Name the task in reports, where each instance of the yardstick is one."""
    return f"yardstick {job.seed % INSTANCES}" if job.task == "yardstick" else job.task


def fill(settings: Settings, console: Console) -> int:
    """Run what is missing; return how many runs failed."""
    wanted = [job for task in settings.tasks for job in settings.jobs_of(task)]
    for name in {job.method for job in wanted}:
        search_method(name)  # an unknown one is an error now, before anything is spent
    for task in settings.tasks:
        make(task, 0)
    known = set() if settings.quick else published(settings)
    todo = [
        job
        for job in wanted
        if not job.path(settings.out).exists() and (strata(job), job.method, job.seed) not in known
    ]
    console.print(f"{len(wanted)} runs, {len(wanted) - len(todo)} of them finished")
    deadline = time.monotonic() + 60 * settings.minutes
    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.jobs, context, initializer=prepare_worker) as pool:
        futures: dict[Future[Job], Job] = {}
        waiting = iter(todo)
        while True:
            while len(futures) < settings.jobs and time.monotonic() < deadline:
                job = next(waiting, None)
                if job is None:
                    break
                try:
                    futures[pool.submit(work, job, settings.out)] = job
                except BrokenProcessPool as error:
                    died = "a worker process died (out of memory?): call it again, it goes on."
                    raise InputError(died) from error
            if not futures:
                return failed
            try:
                done = next(as_completed(futures))
            except KeyboardInterrupt:
                abandon(pool)  # a run takes minutes, and is written at its end
                raise
            job = futures.pop(done)
            failure = done.exception()
            failed += failure is not None
            state = "done" if failure is None else f"FAILED: {failure!r}"
            clock = time.strftime("%H:%M:%S")
            console.print(f"{clock} {job.task}, {job.method}, seed {job.seed}: {state}")


def published(settings: Settings) -> set[tuple[str, str, int]]:
    """List the runs that are in the results already: (task, method, seed).

    Raises:
        InputError: they had another number of evaluations.
    """
    found = set()
    for task in settings.tasks:
        path = settings.results / f"{slug(task)}.csv"
        runs = read_csv(path) if path.exists() else []
        wanted = settings.jobs_of(task)[0].evaluations
        # a method may end by itself, but none goes on for longer
        longest = max((len(run.best_so_far) for run in runs), default=wanted)
        if longest > wanted or (longest < wanted and any(r.method not in ENDING for r in runs)):
            raise InputError(
                f"{path} has runs of {longest} evaluations, not {wanted}: give another --results."
            )
        found |= {(run.task, run.method, run.seed) for run in runs}
    return found


def references(task: str, runs: Sequence[Run]) -> list[Reference]:
    """Say what scores mean: uniform's, the best that any run has found, the proven optimum."""
    unit = "top-1 on held-out images (%)"
    found = []
    for name in sorted({run.task for run in runs}):
        own = [run for run in runs if run.task == name]
        if len({run.best_so_far[0] for run in own}) > 1:
            raise InputError(
                f"runs of {name} begin with uniform bits of different accuracies: they are from "
                "processors, or versions, whose sums have other last digits, and do not compare. "
                "Give another --results."
            )
        best = max(run.best_so_far[-1] for run in own)
        limit = optimum(yardstick(int(name.split()[1]))) if task == "yardstick" else None
        found.append(Reference(name, unit, own[0].best_so_far[0], best, limit))
    return found


def report(task: str, settings: Settings, console: Console) -> str:
    """Write the raw runs, the plots and the table of one task; return the table."""
    jobs = settings.jobs_of(task)
    runs = {}
    if (path := settings.results / f"{slug(task)}.csv").exists() and not settings.quick:
        runs = {(run.task, run.method, run.seed): run for run in read_csv(path)}
    files = jobs if settings.quick else every(task, settings.out, jobs[0].evaluations)
    for file in files if task in settings.tasks else ():
        if file.path(settings.out).exists():
            run = load(file, settings.out)
            runs[run.task, run.method, run.seed] = run
    if not runs:
        return f"## {task}\n\nNot run.\n"
    ordered = [runs[key] for key in sorted(runs)]
    known = references(task, ordered)  # runs that do not compare are an error before they mix
    write_csv(ordered, path)
    names = tuple(dict.fromkeys(job.method for job in jobs))
    rows = summary(ordered, known, methods=names)
    console.print(f"\n[bold]{task}[/bold]")
    console.print(table(rows))
    text = f"## {task}\n\n{markdown(rows)}\n"
    there = [row.method for row in rows if row.best is not None]  # the best one first
    if not there:
        return text + "No method has run on all tasks, so there is nothing to draw.\n"
    chosen = sorted(there, key=lambda name: name not in CORE)[:LINES]
    drawn = [run for run in ordered if run.method in chosen]
    if len(chosen) < len(there):
        text += (
            f"The pictures show {len(chosen)} methods: "
            f"{', '.join(name for name in CORE if name in chosen)}, and the best others.\n\n"
        )
    for name, plot in (("curves", plot_curves), ("profile", plot_profile)):
        picture = settings.results / f"{slug(task)}-{name}.png"
        try:
            plot(drawn, known, picture)
        except InputError as error:  # nothing better than uniform is known
            text += f"No {name}: {error}\n"
            continue
        text += f"![{name}]({picture.name})\n"
    if task == "yardstick":
        drops = mean_drops(ordered, known)
        console.print(drops)
        text += f"\n{drops}\n"
    return text


def reported(settings: Settings) -> list[str]:
    """Return the tasks of this call, and those of the published table that have results there."""
    others = [task for task in PUBLISHED if (settings.results / f"{slug(task)}.csv").exists()]
    wanted = [] if settings.quick else others
    return [task for task in PUBLISHED if task in {*settings.tasks, *wanted}] + [
        task for task in settings.tasks if task not in PUBLISHED
    ]


def mean_drops(runs: Sequence[Run], known: Sequence[Reference]) -> str:
    """Say the yardstick's figure in its own unit: the drop of accuracy, mean over runs."""
    lines = ["Mean drop (%) of the best policy, and its range over instances:", ""]
    lines += ["| method | mean drop | instances | range |", "| :--- | ---: | ---: | ---: |"]
    drops: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        own = drops.setdefault(run.method, {}).setdefault(run.task, [])
        own.append(100 - float(run.best_so_far[-1]))
    optima = {f"{ref.task}": [100 - ref.target] for ref in known}
    drops["certified optimum"] = optima
    # means over fewer instances do not compare, and come last
    for name, by_task in sorted(
        drops.items(), key=lambda each: (len(each[1]) < len(known), _mean(each[1]))
    ):
        means = [float(np.mean(each)) for each in by_task.values()]
        ran = f"{len(means)} of {len(known)}"
        lines.append(
            f"| {name} | {_mean(by_task):.2f} | {ran} | {min(means):.2f} to {max(means):.2f} |"
        )
    return "\n".join(lines)


def _mean(by_task: dict[str, list[float]]) -> float:
    return float(np.mean([np.mean(each) for each in by_task.values()]))


def every(task: str, folder: Path, evaluations: int) -> list[Job]:
    """List all finished runs of a task, those of earlier calls included."""
    paths = sorted((folder / slug(task) / str(evaluations)).glob("*/*.json"))
    return [Job(task, path.parent.name, int(path.stem), evaluations) for path in paths]


def main() -> None:
    """Run what is missing, then report."""
    keep_freed_memory()
    settings = tyro.cli(Settings)
    if settings.quick:
        quick = settings.out / "quick"
        settings = replace(settings, out=quick, results=quick / "results")
        if settings.tasks == tuple(PUBLISHED):
            settings = replace(settings, tasks=("yardstick", "digits:ptq_bn"))
    console = Console(width=110)
    try:
        settings.check()
        if not settings.quick:
            published(settings)  # runs of another length are an error now
        failed = 0 if settings.report_only else fill(settings, console)
        with writing(settings.results):
            settings.results.mkdir(parents=True, exist_ok=True)
        parts = [report(task, settings, console) for task in reported(settings)]
        made_with = versions_line(*PACKAGES, "sb3-contrib")
        head = "# Agents and the methods they must beat\n\n`python benchmarks/compare_agents.py`"
        head += f"{' --quick' if settings.quick else ''}\n\nreported with {made_with}\n"
        path = settings.results / "README.md"
        replace_file(path, "\n".join([head, *parts]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: call it again to go on; finished runs are kept", file=sys.stderr)
        sys.exit(130)
    console.print(f"Written: {path}, raw runs and plots beside it.")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
