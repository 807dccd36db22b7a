"""A comparison in the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from haq_env.errors import InputError
from haq_env.report.comparison import MethodSummary
from haq_env.report.estimates import Estimate
from haq_env.report.units import DASH

_FEW = 5  # seeds a task, below which intervals say little: see haq_env.report.bootstrap


def table(rows: Sequence[MethodSummary]) -> Group:
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


def markdown(rows: Sequence[MethodSummary]) -> str:
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


def _sheets(rows: Sequence[MethodSummary]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Lay a summary out: title, head and cells of two tables."""
    if not rows:
        raise InputError("there is no row to show.")
    counts = sorted({count for row in rows for count in row.at})
    baselines = list(dict.fromkeys(name for row in rows for name in row.over))
    last = max(row.evaluations[1] for row in rows)
    seeds = "seeds a task" if rows[0].tasks[1] > 1 else "seeds"
    reached = ["method", seeds, *map(str, counts), f"{last} evaluations", "mean regret"]
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
                f">{last}" if row.beats_uniform == math.inf else plain(row.beats_uniform),
                plain(row.charge),
                plain(row.hits),
                DASH if row.seconds is None else f"{row.seconds:.1f}",
            ]
        )
    title = f"Best so far after so many evaluations, IQM ({rows[0].unit})"
    return [
        (title, reached, first),
        ("Probability of a better end than a baseline's (%)", against, second),
    ]


def _notes(rows: Sequence[MethodSummary]) -> list[str]:
    notes = ["In brackets: 95 % stratified-bootstrap intervals; none where there is one seed."]
    if rows[0].tasks[1] > 1:
        notes.append(f"Normalised: 0 = uniform, 1 = {rows[0].target}; {rows[0].tasks[1]} tasks.")
    fewest = min((row.seeds[0] for row in rows if row.seeds[0] > 1), default=_FEW)
    if fewest < _FEW:
        notes.append(f"With {fewest} seeds a task intervals are too narrow by far (bootstrap.py).")
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


def plain(value: float | None) -> str:
    """Write a count or a charge without needless digits."""
    return DASH if value is None else f"{value:.1f}".removesuffix(".0")
