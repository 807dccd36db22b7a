"""Tables for the terminal: what each layer costs, and what a search has gained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from haq_env.cost import CostTable
from haq_env.layers import Layer, LayerTable
from haq_env.policy import ACTIVATION, WEIGHT, Bits, as_bits
from haq_env.report.units import DASH, Scale, heading

METRICS = ("macs", "cycles", "latency", "energy", "size")  # columns, as far as available
COMPARED = ("latency", "energy", "size")  # columns of a comparison
ALWAYS = ("index", "name", "w", "a", "share")
# What else gets a column, most important first, while there is room.
WISHED = ("latency", "energy", "size", "kind", "cycles", "macs", "shape")


@dataclass(frozen=True)
class _Column:
    """A column: its key, its head, a cell for each layer and those of the rows below."""

    key: str
    head: str
    cells: list[str]
    constant: str = ""
    total: str = ""
    left: bool = False


def cost_table(
    layers: LayerTable, costs: CostTable, bits: Bits, *, width: int | None = None
) -> Table:
    """Show what a network costs, layer by layer, with totals.

    Args:
        layers: the network, L layers.
        costs: what a machine says of it.
        bits: int64 [L, 2].
        width: characters that there are. Where they do not suffice, the least important columns
            are left out (the caption says which) rather than names cut off. None: no limit.

    Returns:
        One row for each layer: index, name, kind, shape of input and output, bits, MACs, cycles,
        latency, energy and size as far as the machine models them, and the share of the metric
        that the machine is usually limited by. Costs are those of a whole batch.
    """
    bits = as_bits(bits, len(layers))
    columns = [
        _Column("index", "#", [str(index) for index in range(len(layers))]),
        _Column("name", "layer", list(layers.names), "not quantized", "total", left=True),
        _Column("kind", "kind", [_kind(layer) for layer in layers], left=True),
        _Column("shape", "in -> out", [_shape(layer) for layer in layers], left=True),
        _Column("w", "w", [str(b) for b in bits[:, WEIGHT]]),
        _Column("a", "a", [str(b) for b in bits[:, ACTIVATION]]),
    ]
    metrics = [metric for metric in METRICS if metric in costs.values]
    if costs.metric not in metrics:
        metrics.append(costs.metric)
    columns += [_metric_column(costs, bits, metric) for metric in metrics]
    columns.append(_share_column(costs, bits))
    wanted = {*ALWAYS, costs.metric}
    for key in WISHED:
        tried = [column for column in columns if column.key in {*wanted, key}]
        if width is None or _measure(_table(tried, costs)) <= width:
            wanted.add(key)
    shown = [column for column in columns if column.key in wanted]
    dropped = [column.key for column in columns if column.key not in wanted]
    table = _table(shown, costs)
    size = "" if layers[0].kind == "linear" else " at {}x{}".format(*layers[0].in_size)
    title = f"{layers.network}{size} on {costs.hardware}, batch {costs.batch}"
    table.title = Text(title, style="bold")
    table.caption = Text(_caption(layers, costs, dropped), style="dim")
    return table


def _table(columns: Sequence[_Column], costs: CostTable) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for column in columns:
        named = column.key == "name"
        table.add_column(
            column.head,
            justify="left" if column.left else "right",
            no_wrap=not named,
            overflow="fold",
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))  # as Text: names may have brackets, which are markup
    table.add_section()
    if any(costs.constant(metric) for metric in costs.values):
        table.add_row(*(column.constant for column in columns))
    table.add_row(*(column.total for column in columns), style="bold")
    return table


def _measure(table: Table) -> int:
    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum


def _metric_column(costs: CostTable, bits: Bits, metric: str) -> _Column:
    values, total = costs.per_layer(bits, metric), float(costs.cost(bits, metric))
    scale = Scale.of(metric, total)
    constant = costs.constant(metric)
    return _Column(
        metric,
        heading(metric, scale),
        [scale.write(value) for value in values],
        scale.write(constant) if constant else "",
        scale.write(total),
    )


def _share_column(costs: CostTable, bits: Bits) -> _Column:
    total = float(costs.cost(bits, costs.metric))
    constant = costs.constant(costs.metric)

    def share(value: float) -> str:
        return f"{100 * value / total:.1f} %" if total else DASH

    return _Column(
        "share",
        f"share of\n{costs.metric}",
        [share(value) for value in costs.per_layer(bits, costs.metric)],
        share(constant) if constant else "",
        share(total),
    )


def _kind(layer: Layer) -> str:
    if layer.kind == "linear":
        return "linear"
    height, width = layer.stride
    stride = f"/{height}" if height == width else f"/{height}x{width}"
    kind = f"{layer.kind} {layer.kernel[0]}x{layer.kernel[1]}"
    return kind if stride == "/1" else f"{kind} {stride}"


def _shape(layer: Layer) -> str:
    def side(channels: int, size: tuple[int, int]) -> str:
        if layer.kind == "linear":  # features, and how many vectors where there are several
            return str(channels) if size == (1, 1) else f"{size[0] * size[1]}x{channels}"
        height, width = size
        return f"{channels}x{height}²" if height == width else f"{channels}x{height}x{width}"

    before = side(layer.in_channels, layer.in_size)
    return f"{before} -> {side(layer.out_channels, layer.out_size)}"


def _caption(layers: LayerTable, costs: CostTable, dropped: Sequence[str]) -> str:
    lines = []
    if layers.uncounted:
        lines.append(layers.uncounted_line)
    if costs.notes:
        lines.append(f"Note: {', '.join(costs.notes)}.")
    if costs.source:
        lines.append(f"Source: {costs.source}.")
    for metric, reason in costs.missing.items():
        if metric not in costs.values:
            lines.append(f"No {metric}: {reason}")
    if dropped:
        lines.append(f"Columns that the terminal is too narrow for: {', '.join(dropped)}.")
    return "\n".join(lines)


@dataclass(frozen=True)
class NetworkRow:
    """One network in a comparison.

    Attributes:
        name: what it is: ``"float"``, ``"uniform"``, ``"found"``, ...
        accuracies: name of the images (``"val"``, ``"test"``) to mean and standard error, in
            percent.
        costs: metric to cost, in the metric's unit; what is not there is shown as a dash.
    """

    name: str
    accuracies: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)


def comparison_table(rows: Sequence[NetworkRow], metrics: Sequence[str] = COMPARED) -> Table:
    """Compare networks: accuracy as mean ± standard error, and costs.

    Args:
        rows: the networks.
        metrics: which costs have a column; one that is there twice has one.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    parts = list(dict.fromkeys(part for row in rows for part in row.accuracies))
    for part in parts:
        table.add_column(f"accuracy\n{part}, %", justify="right", no_wrap=True)
    scales = {}
    for metric in dict.fromkeys(metrics):
        values = [row.costs[metric] for row in rows if metric in row.costs]
        scales[metric] = Scale.of(metric, max(values, default=1.0))
        table.add_column(heading(metric, scales[metric]), justify="right", no_wrap=True)
    for row in rows:
        cells = [_accuracy(row.accuracies.get(part)) for part in parts]
        for metric, scale in scales.items():
            cells.append(scale.write(row.costs[metric]) if metric in row.costs else DASH)
        table.add_row(*map(Text, (row.name, *cells)))
    return table


def _accuracy(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return DASH
    mean, error = pair
    # One measurement has no standard error; 0.00 would claim that it is certain. Nor do equal ones,
    # whose mean may be off in the last digit.
    shown = f"{error:.2f}" if math.isfinite(error) else "0.00"
    return f"{mean:.2f}" if shown == "0.00" else f"{mean:.2f} ± {shown}"
