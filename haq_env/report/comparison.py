"""Search methods against each other: what their runs say, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from haq_env.errors import InputError
from haq_env.report.bootstrap import REPETITIONS
from haq_env.report.estimates import (
    Estimate,
    estimate,
    mean_regret,
    probability_of_improvement,
)
from haq_env.report.runs import Reference, Run, check_unique
from haq_env.report.scores import Array, evaluations_to_reach

BASELINES = ("random", "uniform", "evolution")  # what every method is compared with
COUNTS = (50, 100, 200)  # evaluations after which the best is reported, besides the last


@dataclass(frozen=True)
class MethodSummary:
    """What the runs of one method say; estimates are None for a method that has no such runs.

    With one task, scores have its unit. With several they are normalised, 0 for the uniform
    policy and 1 for `Reference.target`, because the scores of two tasks do not compare.

    Attributes:
        method: its name.
        unit: of the scores.
        decimals: digits that scores are written with.
        target: what regret is counted from, in words.
        tasks: how many tasks it has run on, and how many there are. Estimates are only made of
            methods that have run on all.
        seeds: the fewest and the most runs on a task.
        evaluations: of its shortest run, and of the longest run of all methods. A run that has
            stopped early keeps its last score.
        at: number of evaluations to the IQM of the best score so far.
        best: the IQM of the best score at the end.
        regret: mean distance to the target.
        over: baseline to the probability of a better score at the end; None for a baseline
            without runs and for the method itself.
        beats_uniform: median over runs of the first evaluation that is strictly better than
            the uniform policy (that of the reference, and the run's own evaluation 1); infinite
            if most runs found none. A tie would not show in the best so far.
        charge: median of `Run.charge`; it is not among the evaluations counted above.
        seconds: median of `Run.seconds`; None if they are not known.
        hits: median of `Run.hits`.
    """

    method: str
    unit: str
    decimals: int
    target: str
    tasks: tuple[int, int]
    seeds: tuple[int, int] = (0, 0)
    evaluations: tuple[int, int] = (0, 0)
    at: Mapping[int, Estimate] = field(default_factory=dict)
    best: Estimate | None = None
    regret: Estimate | None = None
    over: Mapping[str, Estimate | None] = field(default_factory=dict)
    beats_uniform: float | None = None
    charge: float | None = None
    seconds: float | None = None
    hits: float | None = None


class ScaledRuns:
    """All runs on one scale, on which higher is better, and as long as the longest."""

    def __init__(
        self,
        runs: Sequence[Run],
        references: Reference | Sequence[Reference],
        *,
        normalised: bool = False,
    ) -> None:
        given = [references] if isinstance(references, Reference) else references
        known = {reference.task: reference for reference in given}
        if not runs:
            raise InputError("there is no run to compare.")
        check_unique(runs)
        self.runs: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda run: (run.method, run.task, run.seed)):
            if run.task not in known:
                raise InputError(f"{run}: there is no reference for this task.")
            if (np.diff(run.best_so_far) * known[run.task].sign < 0).any():
                raise InputError(f"{run}: the best so far gets worse.")
            self.runs.setdefault(run.method, []).append(run)
        self.tasks = [known[task] for task in sorted({run.task for run in runs})]
        self.evaluations = max(len(run.best_so_far) for run in runs)
        self.complete = [
            name
            for name, own in self.runs.items()
            if len({run.task for run in own}) == len(self.tasks)
        ]
        names = sorted({task.target_name for task in self.tasks})
        self.target_name = " or ".join(names)
        self.normalised = normalised or len(self.tasks) > 1
        if self.normalised:
            self.unit, self.decimals, self.sign = "normalised score", 3, 1.0
            self.uniform, self.targets = 0.0, [1.0] * len(self.tasks)
            for task in self.tasks:
                if task.sign * (task.target - task.uniform) <= 0:
                    raise InputError(
                        f"task {task.task!r} cannot be normalised: its {task.target_name} score "
                        "is not better than uniform."
                    )
        else:
            only = self.tasks[0]
            self.unit, self.sign = only.unit, only.sign
            self.uniform, self.targets = only.sign * only.uniform, [only.sign * only.target]
            # Three digits of the distance that there is to gain, and two decimals at least.
            gain = abs(only.target - only.uniform) or 1.0
            self.decimals = max(2, 2 - math.floor(math.log10(gain)))

    def curves(self, method: str) -> list[Array]:
        """Return the runs of a method: [seeds, evaluations] for each task; higher is better."""
        found = []
        for task in self.tasks:
            rows = [run.best_so_far for run in self.runs[method] if run.task == task.task]
            scores = np.stack(
                [np.pad(row, (0, self.evaluations - len(row)), mode="edge") for row in rows]
            )
            if self.normalised:
                scores = (scores - task.uniform) / (task.target - task.uniform)
            found.append(scores if self.normalised else task.sign * scores)
        return found

    def charge(self, method: str) -> float:
        """Return the median charge."""
        return float(np.median([run.charge for run in self.runs[method]]))

    def row(self, method: str, **found: Any) -> MethodSummary:
        """Describe a method by its runs alone, with the estimates that are handed in."""
        own = self.runs.get(method, [])
        counts = [sum(run.task == task.task for run in own) for task in self.tasks]
        ran = sum(count > 0 for count in counts)
        row = MethodSummary(
            method, self.unit, self.decimals, self.target_name, (ran, len(self.tasks))
        )
        if not own:
            return row
        seconds = [run.seconds for run in own if run.seconds is not None]
        return replace(
            row,
            seeds=(min(counts), max(counts)),
            evaluations=(min(len(run.best_so_far) for run in own), self.evaluations),
            charge=self.charge(method),
            seconds=float(np.median(seconds)) if seconds else None,
            hits=float(np.median([run.hits for run in own])),
            **found,
        )


def summary(
    runs: Sequence[Run],
    references: Reference | Sequence[Reference],
    *,
    methods: Sequence[str] = (),
    counts: Sequence[int] = COUNTS,
    baselines: Sequence[str] = BASELINES,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> list[MethodSummary]:
    """Estimate what each method reaches, with 95 % stratified-bootstrap intervals.

    Args:
        runs: of all methods on all tasks, in any order.
        references: what the scores of each task mean.
        methods: names that get a row even if they have no run.
        counts: numbers of evaluations after which to look; those beyond the longest run are
            left out.
        baselines: methods that all others are compared with.
        repetitions: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The methods from the best IQM to the worst, then those that have not run on all tasks.

    Raises:
        InputError: no run, one run twice, a task without reference, a best so far that gets
            worse, or, with several tasks, one whose best known score is not above uniform.
    """
    board = ScaledRuns(runs, references)
    counts = sorted({count for count in counts if 1 <= count < board.evaluations})
    curves = {name: board.curves(name) for name in board.complete}
    ends = {name: [task[:, -1] for task in tasks] for name, tasks in curves.items()}
    draw: dict[str, Any] = {"repetitions": repetitions, "seed": seed}
    rows = []
    for name, tasks in curves.items():
        at = {}
        for count in (*counts, board.evaluations):
            found = estimate([task[:, count - 1] for task in tasks], **draw)
            at[count] = found if board.sign > 0 else _negative(found)
        over = {
            other: probability_of_improvement(ends[name], ends[other], **draw)
            if other in ends and other != name
            else None
            for other in baselines
        }
        pooled = np.concatenate(tasks)
        above = np.nextafter(np.maximum(pooled[:, 0], board.uniform), np.inf)
        best = at.pop(board.evaluations)
        row = board.row(
            name,
            best=best,
            at=at,
            regret=mean_regret(ends[name], board.targets, **draw),
            over=over,
            beats_uniform=float(np.median(evaluations_to_reach(pooled, above))),
        )
        rows.append((-board.sign * best.value, name, row))
    ordered = [row for *_, row in sorted(rows, key=lambda each: each[:2])]
    others = dict.fromkeys((*board.runs, *methods))
    return ordered + [board.row(name) for name in others if name not in curves]


def _negative(found: Estimate) -> Estimate:
    return Estimate(-found.value, -found.high, -found.low)
