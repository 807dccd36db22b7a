"""Plots of a search: which bits were chosen, and how accuracy went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from haq_env.errors import InputError
from haq_env.layers import LayerTable
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits, as_bits
from haq_env.report.figure import INK, PALE, look, new_figure, save_figure, used_looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from haq_env.search.history import History


def plot_bits(policies: Mapping[str, Bits], layers: LayerTable, path: str | Path) -> Path:
    """Draw the bits of every layer, one panel for each policy.

    Bars grow upwards for weights and downwards for activations; kinds of layers have colours and
    hatches.

    Args:
        policies: label to int64 [L, 2].
        layers: the network, L layers.
        path: the file; its suffix says the format.

    Returns:
        The path.

    Raises:
        InputError: no policy, a policy that is not for these layers, or a file that cannot be
            written.
    """
    if not policies:
        raise InputError("there is no policy to plot.")
    width = min(max(6.0, 1.6 + 0.22 * len(layers)), 24.0)
    figure = new_figure(width, 0.6 + 2.3 * len(policies) + 1.6)
    panels = figure.subplots(len(policies), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, bits) in zip(panels, policies.items(), strict=True):
        _draw_bits(axes, layers, as_bits(bits, len(layers)))
        axes.set_title(label, loc="left", fontsize=11)
    names = _short_names(layers)
    panels[-1].set_xticks(range(len(layers)), names, rotation=90, fontsize=7)
    panels[-1].set_xlim(-0.7, len(layers) - 0.3)
    _add_legend(figure, layers)
    return save_figure(figure, path)


def _add_legend(figure: Figure, layers: LayerTable) -> None:
    """Add the kinds of layers, in as few lines as the figure's width allows."""
    from matplotlib.patches import Patch

    looks = used_looks(layers)
    handles = [
        Patch(facecolor=each.colour, edgecolor="white", hatch=each.hatch, label=each.label)
        for each in looks
    ]
    for columns in range(len(looks), 0, -1):
        legend = figure.legend(
            handles=handles, loc="outside upper right", ncols=columns, frameon=False
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _draw_bits(axes: Axes, layers: LayerTable, bits: Bits) -> None:
    for index, layer in enumerate(layers):
        style = look(layer)
        for side, sign in ((WEIGHT, 1), (ACTIVATION, -1)):
            height = int(bits[index, side])
            axes.bar(
                index,
                sign * height,
                width=0.8,
                color=style.colour,
                edgecolor="white",
                hatch=style.hatch,
                linewidth=0,
            )
            axes.annotate(
                str(height),
                (index, sign * height),
                xytext=(0, 2 * sign),
                textcoords="offset points",
                ha="center",
                va="bottom" if sign > 0 else "top",
                fontsize=7,
                color=INK,
            )
    axes.axhline(0, color=INK, linewidth=0.8)
    marks = (-8, -4, 0, 4, 8)
    axes.set_yticks(marks, [str(abs(mark)) for mark in marks])
    axes.set_ylim(-MAX_BITS - 1.7, MAX_BITS + 1.7)
    axes.set_ylabel("bits\n$\\leftarrow$ activations   weights $\\rightarrow$", fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _short_names(layers: LayerTable) -> list[str]:
    """Keep the ends of long names: they differ there."""
    return [name if len(name) <= 26 else "…" + name[-25:] for name in layers.names]


def plot_search(
    history: History, uniform_accuracy: float, float_accuracy: float, path: str | Path
) -> Path:
    """Draw the accuracy of every evaluation, the best so far, and what it is compared with.

    Evaluations far below the uniform policy would squeeze the part that matters; they are drawn
    as triangles on the lower edge.

    Args:
        history: the search; evaluation 0 is the uniform policy.
        uniform_accuracy: of the uniform policy, in percent.
        float_accuracy: of the float network, in percent.
        path: the file; its suffix says the format.

    Returns:
        The path.

    Raises:
        InputError: nothing has been evaluated, or the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    if not len(history):
        raise InputError("there is no evaluation to plot.")
    accuracy = np.array([trial.accuracy for trial in history])
    number = np.arange(len(accuracy))
    top = max(float_accuracy, uniform_accuracy, float(accuracy.max()))
    bottom = min(uniform_accuracy, float(np.quantile(accuracy, 0.25)))
    room = max(0.08 * (top - bottom), 0.2)
    floor = bottom - room
    if accuracy.min() >= floor - room:  # nearly all are inside: show all
        floor = float(accuracy.min()) - room
    low = accuracy < floor
    figure = new_figure(8.0, 4.5)
    axes = figure.subplots()
    axes.axhline(
        float_accuracy, color=INK, linestyle=":", label=f"float network: {float_accuracy:.2f} %"
    )
    axes.axhline(
        uniform_accuracy,
        color="#E69F00",
        linestyle="--",
        label=f"uniform policy: {uniform_accuracy:.2f} %",
    )
    axes.scatter(number[~low], accuracy[~low], s=14, color="#56B4E9", label="evaluation")
    if low.any():
        edge = np.full(int(low.sum()), floor)
        axes.scatter(
            number[low],
            edge,
            s=22,
            marker="v",
            facecolors="none",
            edgecolors=PALE,
            clip_on=False,
            zorder=3,
            label=f"evaluation below the axis ({low.sum()})",
        )
    best = np.maximum.accumulate(accuracy)
    axes.step(
        number,
        best,
        where="post",
        color="#0072B2",
        linewidth=2,
        label=f"best so far: {best[-1]:.2f} %",
    )
    axes.set_ylim(floor, top + room)
    axes.set_xlim(-0.5, max(len(accuracy) - 0.5, 1))
    axes.set_xlabel("evaluation (0 is the uniform policy)")
    axes.set_ylabel("top-1 on held-out images (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save_figure(figure, path)
