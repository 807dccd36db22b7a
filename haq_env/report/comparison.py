"""Search methods against each other: runs as a CSV file, tables of estimates, and plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from haq_env.errors import InputError
from haq_env.report import estimates
from haq_env.report.estimates import Array, Estimate
from haq_env.report.figure import INK, PALE, new_figure, save_figure
from haq_env.report.terminal import writing
from haq_env.report.units import DASH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BASELINES = ("random", "uniform", "evolution")  # what every method is compared with
COUNTS = (50, 100, 200)  # evaluations after which the best is reported, besides the last
LONGEST = 1_000_000  # evaluations of one run, so that a damaged number does not fill the memory

# Okabe-Ito without the yellow, which is invisible as a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)))


@dataclass(frozen=True, eq=False)
class Run:
    """One search with one seed.

    Attributes:
        task: what was searched.
        method: how.
        seed: of the method.
        best_so_far: the best score after each evaluation, float64 [evaluations]; the first is
            that of the uniform policy, as in every search of `haq_env.search`.
        charge: what was computed before the first evaluation, in evaluations of equal cost.
        seconds: outside the evaluator; None if nobody has measured them.
        hits: evaluations of a policy that had been evaluated before.
    """

    task: str
    method: str
    seed: int
    best_so_far: Array
    charge: float = 0.0
    seconds: float | None = None
    hits: int = 0

    def __post_init__(self) -> None:
        curve = np.array(self.best_so_far, dtype=np.float64)
        curve.setflags(write=False)
        object.__setattr__(self, "best_so_far", curve)
        if curve.ndim != 1 or not curve.size or not np.isfinite(curve).all():
            raise InputError(f"{self}: the best so far must be one finite number or more.")
        steps = np.diff(curve)
        if (steps < 0).any() and (steps > 0).any():
            raise InputError(f"{self}: the best so far goes up and down.")
        numbers = (self.charge, 0.0 if self.seconds is None else self.seconds, self.hits)
        if not all(0 <= number < math.inf for number in numbers):
            raise InputError(f"{self}: charge, seconds and hits must be 0 or more.")

    def __str__(self) -> str:
        return f"run of {self.method!r} on {self.task!r} with seed {self.seed}"


@dataclass(frozen=True)
class Reference:
    """What the scores of a task mean.

    Attributes:
        task: the name that runs have.
        unit: of the scores: ``"top-1 on held-out images (%)"``.
        uniform: score of the uniform policy.
        best_known: the best score that anything has reached.
        optimum: the certified optimum; None where there is no proof.
        higher_is_better: False for a loss.
    """

    task: str
    unit: str
    uniform: float
    best_known: float
    optimum: float | None = None
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not np.isfinite([self.uniform, self.target]).all():
            raise InputError(f"the references of task {self.task!r} must be finite.")
        if self.sign * self.target < self.sign * self.best_known:
            raise InputError(f"task {self.task!r}: the best known is better than the optimum.")

    @property
    def sign(self) -> float:
        """What a score is multiplied with to be better when higher: 1 or -1."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def target(self) -> float:
        """What regret is counted from: the certified optimum, else the best known score."""
        return self.best_known if self.optimum is None else self.optimum

    @property
    def target_name(self) -> str:
        """What `target` is called."""
        return "best known" if self.optimum is None else "certified optimum"


@dataclass(frozen=True)
class Row:
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


class _Board:
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
        _check_unique(runs)
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

    def row(self, method: str, **found: Any) -> Row:
        """Describe a method by its runs alone, with the estimates that are handed in."""
        own = self.runs.get(method, [])
        counts = [sum(run.task == task.task for run in own) for task in self.tasks]
        ran = sum(count > 0 for count in counts)
        row = Row(method, self.unit, self.decimals, self.target_name, (ran, len(self.tasks)))
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
    repetitions: int = estimates.REPETITIONS,
    seed: int = 0,
) -> list[Row]:
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
    board = _Board(runs, references)
    counts = sorted({count for count in counts if 1 <= count < board.evaluations})
    curves = {name: board.curves(name) for name in board.complete}
    ends = {name: [task[:, -1] for task in tasks] for name, tasks in curves.items()}
    draw: dict[str, Any] = {"repetitions": repetitions, "seed": seed}
    rows = []
    for name, tasks in curves.items():
        at = {}
        for count in (*counts, board.evaluations):
            found = estimates.estimate([task[:, count - 1] for task in tasks], **draw)
            at[count] = found if board.sign > 0 else _negative(found)
        over = {
            other: estimates.probability_of_improvement(ends[name], ends[other], **draw)
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
            regret=estimates.mean_regret(ends[name], board.targets, **draw),
            over=over,
            beats_uniform=float(np.median(estimates.evaluations_to_reach(pooled, above))),
        )
        rows.append((-board.sign * best.value, name, row))
    ordered = [row for *_, row in sorted(rows, key=lambda each: each[:2])]
    others = dict.fromkeys((*board.runs, *methods))
    return ordered + [board.row(name) for name in others if name not in curves]


def _negative(found: Estimate) -> Estimate:
    return Estimate(-found.value, -found.high, -found.low)


# -- tables ------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Group:
    """Show a `summary` in the terminal, two tables of at most 100 columns."""
    parts: list[Table | Text] = []
    for title, head, body in _sheets(rows):
        sheet = Table(
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
            title_justify="left",
        )
        sheet.title = Text(title, style="bold")
        for number, name in enumerate(head):
            left = number == 0
            sheet.add_column(
                Text(name), justify="left" if left else "right", no_wrap=not left, overflow="fold"
            )
        for cells in body:
            sheet.add_row(*map(Text, cells))  # as Text: names may have brackets
        parts += [sheet, Text()]
    return Group(*parts, Text("\n".join(_notes(rows)), style="dim"))


def markdown(rows: Sequence[Row]) -> str:
    """Write a `summary` as Markdown, the same tables as in the terminal."""
    lines = []
    for title, head, body in _sheets(rows):
        lines += [f"{title}:", ""]
        rule = [":---", *["---:"] * (len(head) - 1)]
        for cells in (head, rule, *body):
            escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
            lines.append(f"| {' | '.join(escaped)} |")
        lines.append("")
    return "\n".join([*lines, *(f"{note}  " for note in _notes(rows))]).rstrip() + "\n"


def _sheets(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Lay a summary out: title, head and cells of two tables."""
    if not rows:
        raise InputError("there is no row to show.")
    counts = sorted({count for row in rows for count in row.at})
    baselines = list(dict.fromkeys(name for row in rows for name in row.over))
    last = max(row.evaluations[1] for row in rows)
    reached = ["method", "seeds", *map(str, counts), f"{last} evaluations", "mean regret"]
    against = ["method", *(f"over {name}" for name in baselines)]
    against += ["beats\nuniform", "charge", "hits", "seconds"]
    first, second = [], []
    for row in rows:
        if row.best is None:
            ran, tasks = row.tasks
            state = f"{ran} of {tasks} tasks" if ran else "not run"
            first.append([row.method, state, *[DASH] * (len(reached) - 2)])
            second.append([row.method, state, *[DASH] * (len(against) - 2)])
            continue
        first.append(
            [
                row.method,
                "-".join(map(str, dict.fromkeys(row.seeds))),
                *(_value(row.at[count].value, row.decimals) for count in counts),
                _interval(row.best, row.decimals),
                _interval(row.regret, row.decimals),
            ]
        )
        second.append(
            [
                row.method,
                *(_interval(row.over.get(name), 0, 100.0) for name in baselines),
                f">{last}" if row.beats_uniform == math.inf else _plain(row.beats_uniform),
                _plain(row.charge),
                _plain(row.hits),
                DASH if row.seconds is None else f"{row.seconds:.1f}",
            ]
        )
    title = f"Best so far after so many evaluations, IQM ({rows[0].unit})"
    return [
        (title, reached, first),
        ("Probability of a better end than a baseline's (%)", against, second),
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = ["In brackets: 95 % stratified-bootstrap intervals; none where there is one seed."]
    if rows[0].tasks[1] > 1:
        notes.append(f"Normalised: 0 = uniform, 1 = {rows[0].target}; {rows[0].tasks[1]} tasks.")
    notes += [
        f"Regret: distance to the {rows[0].target}.",
        "Beats uniform: median of the first evaluation that is strictly better than uniform.",
        "Charge: computed before the first evaluation, in evaluations; not counted elsewhere.",
        "Hits: median evaluations of a known policy. Seconds: median outside the evaluator.",
    ]
    early = [
        f"{row.method} ({row.evaluations[0]})"
        for row in rows
        if row.best and row.evaluations[0] < row.evaluations[1]
    ]
    if early:
        notes.append(f"Stopped early and keep their best (shortest run): {', '.join(early)}.")
    return notes


def _value(value: float, decimals: int) -> str:
    # Adding zero turns the -0.00 of a regret that is none into 0.00.
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def _interval(found: Estimate | None, decimals: int, factor: float = 1.0) -> str:
    if found is None:
        return DASH
    value, low, high = (
        _value(factor * number, decimals) for number in (found.value, found.low, found.high)
    )
    return value if math.isnan(found.low) else f"{value} [{low}, {high}]"


def _plain(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}".removesuffix(".0")


# -- runs as a file ----------------------------------------------------------------------------

_HEAD = ("task", "method", "seed", "charge", "seconds", "hits", "evaluations", "improvements")


def write_csv(runs: Sequence[Run], path: str | Path) -> Path:
    """Write runs, one line each, sorted by task, method and seed.

    The last column has the best so far as ``evaluation:score`` for the first evaluation and for
    each that improved, for example ``1:70.9 4:85.8``. Numbers are exact. Seconds are empty where
    they are not known.

    Raises:
        InputError: one run twice, or the file cannot be written.
    """
    path = Path(path)
    _check_unique(runs)
    with writing(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEAD)
        for run in sorted(runs, key=lambda run: (run.task, run.method, run.seed)):
            curve = run.best_so_far
            changes = [0, *(np.flatnonzero(np.diff(curve)) + 1)]
            writer.writerow(
                [
                    *(run.task, run.method, run.seed, float(run.charge)),
                    "" if run.seconds is None else float(run.seconds),
                    *(run.hits, len(curve)),
                    " ".join(f"{index + 1}:{float(curve[index])!r}" for index in changes),
                ]
            )
    return path


def read_csv(path: str | Path) -> list[Run]:
    """Read what `write_csv` has written.

    Raises:
        InputError: the file is missing, cut off or damaged, or has one run twice.
    """
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    if not text.endswith("\n"):
        raise InputError(f"{path} is cut off: its last line does not end.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    runs = []
    try:
        if tuple(next(reader)) != _HEAD:
            raise ValueError(f"the first line must be {','.join(_HEAD)}")
        runs = [_run(line) for line in reader]
        _check_unique(runs)
    except (ValueError, csv.Error) as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{path}: line {reader.line_num} is damaged: {reason}.") from error
    return runs


def _run(line: list[str]) -> Run:
    """Read one line; raises ValueError for a damaged one."""
    if len(line) != len(_HEAD):
        raise ValueError(f"{len(line)} columns instead of {len(_HEAD)}")
    task, method, seed, charge, seconds, hits, evaluations, improvements = line
    length = int(evaluations)
    pairs = [pair.partition(":") for pair in improvements.split(" ")]
    starts = [int(start) for start, _, _ in pairs]
    if starts[0] != 1 or starts != sorted(set(starts)) or not starts[-1] <= length <= LONGEST:
        raise ValueError("the improvements must be at rising evaluations from 1 on")
    curve = np.repeat([float(score) for _, _, score in pairs], np.diff([*starts, length + 1]))
    known = float(seconds) if seconds else None
    return Run(task, method, int(seed), curve, float(charge), known, int(hits))


def _check_unique(runs: Sequence[Run]) -> None:
    seen: set[tuple[str, str, int]] = set()
    for run in runs:
        key = (run.task, run.method, run.seed)
        if key in seen:
            raise InputError(f"{run} is there twice.")
        seen.add(key)


# -- plots -------------------------------------------------------------------------------------


def plot_curves(
    runs: Sequence[Run],
    references: Reference | Sequence[Reference],
    path: str | Path,
    *,
    repetitions: int = 1000,
    seed: int = 0,
) -> Path:
    """Draw the best so far against evaluations: IQM and 95 % bootstrap band of each method.

    Curves begin to the right of what was computed before the first evaluation (`Run.charge`).
    Methods that have not run on all tasks are left out.

    Args:
        runs: of all methods; scores of several tasks are normalised as in `Row`.
        references: what the scores of each task mean.
        path: the file; its suffix says the format.
        repetitions: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The path.

    Raises:
        InputError: as in `summary`, too many methods to tell apart, or a file that cannot be
            written.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    board = _Board(runs, references)
    figure = new_figure(9.5, 5.2)
    axes = figure.subplots()
    axes.set_xscale("log")
    # Neighbours on a log axis do not show apart; the last evaluation is always there.
    grid = np.unique(np.geomspace(1, board.evaluations, 150).round().astype(int))
    ends = {}
    for name, style in _styles(board.complete).items():
        curves = [task[:, grid - 1] for task in board.curves(name)]
        low, high = estimates.bootstrap_band(curves, repetitions=repetitions, seed=seed)
        middle = board.sign * estimates.iqm_curve(curves)
        charge = board.charge(name)
        ends_of_band = (board.sign * low, board.sign * high)
        _draw_band(axes, grid + charge, *ends_of_band, style, len(board.complete), step="post")
        extra = f" (charge {_plain(charge)})" if charge else ""
        label = f"{name}: {middle[-1]:.{board.decimals}f}{extra}"
        (line,) = axes.step(grid + charge, middle, where="post", label=label, **style)
        ends[line] = (-board.sign * middle[-1], name)
    _draw_references(axes, board)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    charged = any(board.charge(name) for name in board.complete)
    axes.set_xlabel("evaluations" + (" (curves begin after their charge)" if charged else ""))
    axes.set_ylabel(f"best so far, {board.unit}")
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, sorted(ends, key=lambda line: ends[line]), "IQM at the end")
    return save_figure(figure, path)


def plot_profile(
    runs: Sequence[Run],
    references: Reference | Sequence[Reference],
    path: str | Path,
    *,
    evaluations: int | None = None,
    repetitions: int = 1000,
    seed: int = 0,
) -> Path:
    """Draw which share of the runs reaches which normalised score: 0 is uniform, 1 best known.

    Args:
        runs: of all methods.
        references: what the scores of each task mean.
        path: the file; its suffix says the format.
        evaluations: after how many to look; None is the end.
        repetitions: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The path.

    Raises:
        InputError: as in `plot_curves`, a task whose best known score is not above uniform, or
            more evaluations than there are.
    """
    board = _Board(runs, references, normalised=True)
    count = board.evaluations if evaluations is None else evaluations
    if not 1 <= count <= board.evaluations:
        raise InputError(f"evaluations must be 1 to {board.evaluations}, not {count}.")
    styles = _styles(board.complete)
    scores = {name: [task[:, count - 1] for task in board.curves(name)] for name in styles}
    pooled = np.concatenate([task for tasks in scores.values() for task in tasks])
    # Collapsed runs far below uniform would squeeze the part that matters.
    left, right = max(-1.0, min(-0.05, pooled.min() - 0.02)), max(1.05, pooled.max() + 0.02)
    figure = new_figure(9.5, 5.2)
    axes = figure.subplots()
    handles = {}
    for name, style in styles.items():
        # The share only changes at the method's own scores, and falls to zero above the last.
        own = np.unique(np.concatenate(scores[name]))
        taus = np.array([min(left, own[0] - 1), *own, np.nextafter(own[-1], np.inf)])
        found = estimates.performance_profile(
            scores[name], taus, repetitions=repetitions, seed=seed
        )
        _draw_band(axes, taus, found.low, found.high, style, len(styles), step="pre")
        (line,) = axes.step(taus, found.share, where="pre", label=name, **style)
        handles[line] = (-estimates.mean(scores[name]), name)
    for mark in (0.0, 1.0):
        axes.axvline(mark, color=PALE, linewidth=0.8, zorder=1)
    axes.set_xlim(left, right)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(
        f"normalised score $\\tau$ after {count} evaluations (0: uniform, 1: {board.target_name})"
    )
    axes.set_ylabel("share of runs with a score of $\\tau$ or more")
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, sorted(handles, key=lambda line: handles[line]), "by mean score")
    return save_figure(figure, path)


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give every method a colour and a line style; the same methods always get the same."""
    most = len(_COLOURS) * len(_LINES)
    if not methods:
        raise InputError("no method has run on all tasks.")
    if len(methods) > most:
        raise InputError(f"a plot tells at most {most} methods apart, not {len(methods)}.")
    styles = {}
    for index, name in enumerate(sorted(methods)):
        colour, line = _COLOURS[index % len(_COLOURS)], _LINES[index // len(_COLOURS)]
        styles[name] = {"color": colour, "linestyle": line, "linewidth": 1.6}
    return styles


def _draw_band(
    axes: Axes,
    x: Array,
    low: Array,
    high: Array,
    style: dict[str, Any],
    methods: int,
    *,
    step: Literal["pre", "post"],
) -> None:
    # Many bands on top of each other would hide the lines.
    alpha = 0.15 if methods <= 8 else 0.07
    axes.fill_between(x, low, high, step=step, color=style["color"], alpha=alpha, linewidth=0)


def _draw_references(axes: Axes, board: _Board) -> None:
    """Draw uniform and the target, labelled where curves leave room: right and left."""
    target = float(np.mean(board.targets))
    for name, merit, side in (
        ("uniform", board.uniform, "right"),
        (board.target_name, target, "left"),
    ):
        score = board.sign * merit
        outwards = board.sign if side == "left" else -board.sign
        axes.axhline(score, color=PALE, linewidth=1.0, zorder=1)
        axes.annotate(
            f"{name}: {score:.{board.decimals}f}",
            (0.0 if side == "left" else 1.0, score),
            xycoords=("axes fraction", "data"),
            xytext=(4 if side == "left" else -4, 3 * outwards),
            textcoords="offset points",
            ha=side,
            va="bottom" if outwards > 0 else "top",
            fontsize=9,
            color=INK,
        )


def _add_legend(figure: Figure, handles: Sequence[Line2D], title: str) -> None:
    figure.legend(
        handles=handles,
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        handlelength=3.2,
        title=title,
        alignment="left",
    )
