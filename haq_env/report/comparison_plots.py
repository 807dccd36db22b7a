"""A comparison as pictures: curves over evaluations, and performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from haq_env.errors import InputError
from haq_env.report.bootstrap import bootstrap_band
from haq_env.report.comparison import ScaledRuns
from haq_env.report.comparison_tables import plain
from haq_env.report.estimates import performance_profile
from haq_env.report.figure import INK, PALE, new_figure, save_figure
from haq_env.report.runs import Reference, Run
from haq_env.report.scores import Array, iqm_curve, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe-Ito without the yellow, which is invisible as a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)))


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
        runs: of all methods; scores of several tasks are normalised as in `MethodSummary`.
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

    board = ScaledRuns(runs, references)
    figure = new_figure(9.5, 5.2)
    axes = figure.subplots()
    axes.set_xscale("log")
    # Neighbours on a log axis do not show apart; the last evaluation is always there.
    grid = np.unique(np.geomspace(1, board.evaluations, 150).round().astype(int))
    ends = {}
    for name, style in _styles(board.complete).items():
        curves = [task[:, grid - 1] for task in board.curves(name)]
        low, high = bootstrap_band(curves, repetitions=repetitions, seed=seed)
        middle = board.sign * iqm_curve(curves)
        charge = board.charge(name)
        ends_of_band = (board.sign * low, board.sign * high)
        _draw_band(axes, grid + charge, *ends_of_band, style, len(board.complete), step="post")
        extra = f" (charge {plain(charge)})" if charge else ""
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
    board = ScaledRuns(runs, references, normalised=True)
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
        found = performance_profile(scores[name], taus, repetitions=repetitions, seed=seed)
        _draw_band(axes, taus, found.low, found.high, style, len(styles), step="pre")
        (line,) = axes.step(taus, found.share, where="pre", label=name, **style)
        handles[line] = (-mean(scores[name]), name)
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


def _draw_references(axes: Axes, board: ScaledRuns) -> None:
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
