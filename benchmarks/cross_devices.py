"""What a policy that was searched for one device costs on the others, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from haq_env.cost import CostTable, Grid
from haq_env.errors import InputError
from haq_env.layers import LayerTable
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits, as_bits
from haq_env.report.figure import (
    DEPTHWISE,
    INK,
    PALE,
    POINTWISE,
    look,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES = ((WEIGHT, "weight bits"), (ACTIVATION, "activation bits"))
KINDS = (DEPTHWISE, POINTWISE)


def cross_costs(
    policies: Mapping[str, Bits], tables: Mapping[str, CostTable], metric: str = "latency"
) -> Grid:
    """Cost every policy on every device.

    Args:
        policies: device to the policy that was searched for it, int64 [L, 2].
        tables: device to its costs of the same network; the same devices in the same order.
        metric: which cost.

    Returns:
        float64 [K, K] in the metric's unit, ``[searched for, runs on]``.

    Raises:
        InputError: fewer than two devices, other devices than there are tables of, a policy that
            is not for the network, or a device without a model of the metric.
    """
    if list(policies) != list(tables):
        raise InputError(
            f"policies are for {', '.join(policies)}, but costs are of {', '.join(tables)}."
        )
    if len(policies) < 2:
        raise InputError("specialization is seen on two devices or more.")
    return np.array(
        [[float(t.cost(bits, metric)) for t in tables.values()] for bits in policies.values()]
    )


def specialized(costs: Grid) -> NDArray[np.bool_]:
    """Say of every device whether its own policy is the cheapest there, and no other as cheap.

    Args:
        costs: float64 [K, K], ``[searched for, runs on]``.

    Returns:
        bool [K].
    """
    others = np.where(np.eye(len(costs), dtype=bool), np.inf, costs)
    return np.asarray(np.diagonal(costs) < others.min(axis=0))


def cross_table(
    costs: Grid, devices: Sequence[str], unit: str, extra: Mapping[str, Sequence[str]]
) -> Table:
    """Show costs with the least of each column marked.

    Args:
        costs: float64 [K, K], ``[searched for, runs on]``.
        devices: K names.
        unit: of the costs, for the head.
        extra: head to K cells that stand beside the costs, such as accuracies.
    """
    table = Table("searched for", *extra)
    for device in devices:
        table.add_column(f"on {device}, {unit}", justify="right")
    least = costs.argmin(axis=0)
    for row, device in enumerate(devices):
        cells = [
            f"{value:.4g}{' *' if least[column] == row else '  '}"
            for column, value in enumerate(costs[row])
        ]
        table.add_row(device, *(column[row] for column in extra.values()), *cells)
    table.caption = "* least of its column"
    return table


def mean_bits(bits: Bits, layers: LayerTable) -> dict[str, tuple[float, float]]:
    """Average a policy over its depthwise and over its pointwise convolutions.

    Args:
        bits: int64 [L, 2].
        layers: the network, L layers.

    Returns:
        ``"depthwise"`` and ``"pointwise"``, as far as there are any, to the mean bits of weights
        and of activations; layers count alike, whatever their size.
    """
    bits = as_bits(bits, len(layers))
    means = {}
    for kind in KINDS:
        chosen = [look(layer) is kind for layer in layers]
        if any(chosen):
            w, a = bits[chosen].mean(axis=0)
            means[kind.label.split()[0]] = (float(w), float(a))
    return means


def plot_specialization(policies: Mapping[str, Bits], layers: LayerTable, path: str | Path) -> Path:
    """Draw the policies of devices side by side: weights above, activations below.

    Depthwise and pointwise convolutions have a colour and a hatch each and their means written
    in, as in HAQ's figures; all other layers are grey.

    Args:
        policies: title of the panel to int64 [L, 2].
        layers: the network, L layers.
        path: the file; its suffix says the format.

    Returns:
        The path.

    Raises:
        InputError: no policy, a policy that is not for these layers, or a file that cannot be
            written.
    """
    from matplotlib.patches import Patch

    if not policies:
        raise InputError("there is no policy to plot.")
    checked = {title: as_bits(bits, len(layers)) for title, bits in policies.items()}
    width = max(4.5, 1.2 + 0.19 * len(layers))
    figure = new_figure(min(width * len(checked), 24.0), 6.0)
    panels = figure.subplots(2, len(checked), sharex=True, sharey=True, squeeze=False)
    for column, (title, bits) in enumerate(checked.items()):
        means = mean_bits(bits, layers)
        for row, (side, label) in enumerate(SIDES):
            axes = panels[row, column]
            _draw_side(axes, layers, bits[:, side])
            text = ", ".join(f"{kind} {both[side]:.2f}" for kind, both in means.items())
            axes.set_title(f"mean: {text}" if text else "", loc="left", fontsize=9, color=INK)
            if column == 0:
                axes.set_ylabel(label)
        panels[0, column].annotate(
            title, (0.5, 1.16), xycoords="axes fraction", ha="center", fontsize=11
        )
        panels[1, column].set_xlabel("layer")
    handles = [
        Patch(facecolor=kind.colour, edgecolor="white", hatch=kind.hatch, label=kind.label)
        for kind in KINDS
    ]
    handles.append(Patch(facecolor=PALE, label="other"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return save_figure(figure, path)


def _draw_side(axes: Axes, layers: LayerTable, widths: NDArray[np.int64]) -> None:
    """Draw one side's bits, and the means of both kinds as lines."""
    for index, layer in enumerate(layers):
        kind = look(layer)
        known = kind in KINDS
        axes.bar(
            index,
            int(widths[index]),
            width=0.8,
            color=kind.colour if known else PALE,
            hatch=kind.hatch if known else "",
            edgecolor="white",
            linewidth=0,
        )
    for kind in KINDS:
        chosen = [look(layer) is kind for layer in layers]
        if any(chosen):
            axes.axhline(widths[chosen].mean(), color=kind.colour, linestyle="--", linewidth=1)
    axes.set_ylim(0, MAX_BITS + 0.4)
    axes.set_yticks(range(0, MAX_BITS + 1, 2))
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.spines[["top", "right"]].set_visible(False)
