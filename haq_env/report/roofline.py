"""The roofline: how far each layer is from what the machine could do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from haq_env.cost import CostTable, Roofs
from haq_env.errors import InputError
from haq_env.layers import LayerTable
from haq_env.policy import Bits, as_bits
from haq_env.report.figure import INK, PALE, look, new_figure, save_figure, used_looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS = (8, 4, 2)  # compute roofs that are drawn: w8a8, w4a4, w2a2
Points = NDArray[np.float64]


def roofline_points(layers: LayerTable, costs: CostTable, bits: Bits) -> Points:
    """Compute where each layer stands.

    Args:
        layers: the network, L layers.
        costs: what a machine says of it; it must model ``traffic`` and ``latency``.
        bits: int64 [L, 2].

    Returns:
        float64 [L, 2]: operation intensity in MACs per byte of DRAM traffic, and attained
        performance in MACs per second.

    Raises:
        InputError: the machine has no traffic or latency, or they are zero for a layer.
    """
    if layers.names != costs.names:
        raise InputError(f"the cost table {costs.hardware!r} is for other layers.")
    missing = [metric for metric in ("traffic", "latency") if metric not in costs.values]
    if missing:
        raise _no_roofline(costs, missing)
    bits = as_bits(bits, len(layers))
    traffic = costs.per_layer(bits, "traffic")
    seconds = costs.per_layer(bits, "latency") / 1e3
    for metric, values in (("traffic", traffic), ("latency", seconds)):
        if (values <= 0).any():
            name = layers.names[int(np.argmax(values <= 0))]
            raise InputError(f"cost table {costs.hardware!r}: {metric} of layer {name!r} is zero.")
    macs = np.array([layer.macs * costs.batch for layer in layers], dtype=np.float64)
    return np.stack([macs / traffic, macs / seconds], axis=1)


def plot_roofline(
    layers: LayerTable, costs: CostTable, policies: Mapping[str, Bits], path: str | Path
) -> tuple[Path, Path]:
    """Draw every layer under the machine's roofs, before and after.

    Args:
        layers: the network, L layers.
        costs: what a machine says of it, with `CostTable.roofs`.
        policies: one or two: label to int64 [L, 2]. The first of two is drawn hollow, with a line
            to where the second one moves each layer.
        path: the files, without suffix or with one of theirs.

    Returns:
        The paths of a PNG and an SVG file.

    Raises:
        InputError: the machine has no traffic, latency or roofs; no policy or more than two; a
            file cannot be written.
    """
    metrics = [metric for metric in ("traffic", "latency") if metric not in costs.values]
    if metrics or costs.roofs is None:
        raise _no_roofline(costs, metrics + ([] if costs.roofs else ["roofs"]))
    if not 1 <= len(policies) <= 2:
        raise InputError(f"a roofline shows one policy or two, not {len(policies)}.")
    points = [roofline_points(layers, costs, bits) for bits in policies.values()]
    figure = new_figure(9.0, 6.0)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    _set_limits(axes, np.concatenate(points), costs.roofs)
    _draw_roofs(axes, costs.roofs)
    if len(points) == 2:
        lines = np.stack(points)  # [before and after, L, 2]
        axes.plot(lines[:, :, 0], lines[:, :, 1], color=PALE, linewidth=0.7, alpha=0.6, zorder=2)
    for number, each in enumerate(points):
        _draw_points(axes, layers, each, hollow=number < len(points) - 1)
    _add_legend(axes, layers, list(policies))
    axes.set_xlabel("operation intensity (MACs per byte of DRAM traffic)")
    axes.set_ylabel("performance (MACs per second)")
    notes = f" ({', '.join(costs.notes)})" if costs.notes else ""
    axes.set_title(
        f"{layers.network} on {costs.hardware}, batch {costs.batch}{notes}", loc="left", fontsize=11
    )
    axes.grid(which="major", color="#EEEEEE", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    stem = Path(path)
    if not stem.name:
        raise InputError(f"a plot cannot be written to {path}: give the name of a file.")
    if stem.suffix.lower() in (".png", ".svg"):
        stem = stem.with_suffix("")
    # with_suffix would take "v1.0" for a name with a suffix
    png, svg = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg"))
    return save_figure(figure, png), save_figure(figure, svg)


def _no_roofline(costs: CostTable, missing: list[str]) -> InputError:
    return InputError(
        f"hardware {costs.hardware!r} has no {' and no '.join(missing)}, which a roofline needs "
        "(traffic, latency and the machine's roofs)."
    )


def _set_limits(axes: Axes, points: Points, roofs: Roofs) -> None:
    peaks = [float(roofs.peak[width - 1, width - 1]) for width in WIDTHS]
    left, right = float(points[:, 0].min()), float(points[:, 0].max())
    # The ridge of the highest roof is the most that intensity can buy.
    right = max(right, max(peaks) / roofs.bandwidth)
    # A fifth of the axis is left to the roofs' labels.
    axes.set_xlim(left / 1.6, right * max(4.0, (right / left) ** 0.25))
    axes.set_ylim(float(points[:, 1].min()) / 2, max(max(peaks), float(points[:, 1].max())) * 2.2)


def _draw_roofs(axes: Axes, roofs: Roofs) -> None:
    left, right = axes.get_xlim()
    bottom, _ = axes.get_ylim()
    labels: dict[float, list[str]] = {}  # machines without narrow units have equal roofs
    for width in WIDTHS:
        labels.setdefault(float(roofs.peak[width - 1, width - 1]), []).append(f"w{width}a{width}")
    ridge = max(labels) / roofs.bandwidth
    axes.plot([left, ridge], [left * roofs.bandwidth, max(labels)], color=INK, linewidth=1.4)
    for peak, names in labels.items():
        axes.plot([peak / roofs.bandwidth, right], [peak, peak], color=INK, linewidth=1.4)
        axes.annotate(
            f"{', '.join(names)}: {_engineering(peak)}MAC/s",
            (right, peak),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
            color=INK,
        )
    # In the middle of what is visible of the slope.
    start = max(left, bottom / roofs.bandwidth)
    middle = float(np.sqrt(start * min(labels) / roofs.bandwidth))
    if start * 1.5 < middle:
        axes.annotate(
            f"DRAM: {_engineering(roofs.bandwidth)}B/s",
            (middle, middle * roofs.bandwidth),
            xytext=(-6, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
            color=INK,
        )


def _draw_points(axes: Axes, layers: LayerTable, points: Points, *, hollow: bool) -> None:
    for each in used_looks(layers.layers):
        rows = [index for index, layer in enumerate(layers) if look(layer) == each]
        axes.scatter(
            points[rows, 0],
            points[rows, 1],
            s=42,
            marker=each.marker,
            facecolors="none" if hollow else each.colour,
            edgecolors=each.colour if hollow else "white",
            linewidths=1.2 if hollow else 0.6,
            zorder=3 if hollow else 4,
        )


def _add_legend(axes: Axes, layers: LayerTable, names: list[str]) -> None:
    from matplotlib.lines import Line2D

    def entry(marker: str, colour: str, label: str, *, hollow: bool = False) -> Line2D:
        face = "none" if hollow else colour
        return Line2D(
            [], [], linestyle="", marker=marker, color=colour, markerfacecolor=face, label=label
        )

    handles = [entry(e.marker, e.colour, e.label) for e in used_looks(layers.layers)]
    for number, name in enumerate(names):
        handles.append(entry("o", INK, name, hollow=number < len(names) - 1))
    axes.figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )


def _engineering(value: float) -> str:
    """Write 12.8e9 as ``12.8 G``."""
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
