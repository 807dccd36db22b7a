"""Look for what is probably wrong in a cost table, without knowing the machine."""

from __future__ import annotations

import numpy as np

from haq_env.cost import UNITS, CostTable, Grid

# Machines charge these for the same work, so neighbours are comparable; sizes are not.
CHARGED = ("cycles", "latency", "energy")
CELL_SLIP = 100.0  # one bit more never costs a hundred times as much
LAYER_SLIP = 300.0  # a thousand, with room for layers that do differ
CLOCK_SLIP = 0.01


def lint_table(table: CostTable) -> list[str]:
    """Describe what looks wrong in a table; an empty list if nothing does.

    Looks for cells that are zero; for costs that fall when a bit is added (a searcher would
    exploit them; see `CostTable.monotone`); for cells and layers that differ from their
    neighbours by about a thousand, as when one was written in another unit; for latencies that
    contradict cycles and clock. Findings are hints: a simulator may have reasons.
    """
    findings: list[str] = []
    for metric in CHARGED:
        if metric in table.values:
            grid = table.grid(metric)
            findings += _zeros(table, metric, grid)
            findings += _falls(table, metric, grid)
            findings += _cell_slips(table, metric, grid)
            findings += _layer_slips(table, metric, grid)
    return findings + _clock(table)


def _zeros(table: CostTable, metric: str, grid: Grid) -> list[str]:
    zero = np.argwhere(grid <= 0)
    if not len(zero):
        return []
    return [
        f"{metric}: {len(zero)} of {grid.size} cells are not positive, first "
        f"{_cell(table, zero[0])}."
    ]


def _steps(grid: Grid) -> list[tuple[Grid, int]]:
    """Return cost with one bit more over cost before, along weights and along activations."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return [
            (np.nan_to_num(grid[:, 1:] / grid[:, :-1], nan=1.0, posinf=1.0), 1),
            (np.nan_to_num(grid[:, :, 1:] / grid[:, :, :-1], nan=1.0, posinf=1.0), 2),
        ]


def _falls(table: CostTable, metric: str, grid: Grid) -> list[str]:
    count, worst, where = 0, 1.0, ""
    for ratio, axis in _steps(grid):
        count += int((ratio < 1).sum())
        if ratio.min() < worst:
            worst = float(ratio.min())
            at = np.unravel_index(ratio.argmin(), ratio.shape)
            side = "weight" if axis == 1 else "activation"
            where = f"one {side} bit more than {_cell(table, at)}"
    if not count:
        return []
    return [
        f"{metric}: falls in {count} of the {grid.size // 8 * 14} steps of one bit more; worst "
        f"{100 * (worst - 1):.2f} % with {where}."
    ]


def _cell_slips(table: CostTable, metric: str, grid: Grid) -> list[str]:
    findings = []
    for ratio, axis in _steps(grid):
        slips = np.argwhere((ratio > CELL_SLIP) | (ratio < 1 / CELL_SLIP))
        if len(slips):
            factor = ratio[tuple(slips[0])]
            side = "weight" if axis == 1 else "activation"
            findings.append(
                f"{metric}: {len(slips)} neighbouring cells differ by more than {CELL_SLIP:.0f} "
                f"times; first {factor:.4g} times with one {side} bit more than "
                f"{_cell(table, slips[0])}. A slip of unit?"
            )
    return findings


def _layer_slips(table: CostTable, metric: str, grid: Grid) -> list[str]:
    typical = np.median(grid.reshape(len(grid), -1), axis=1)
    if len(typical) < 2 or (typical <= 0).any():
        return []
    findings = []
    logs = np.log(typical)
    for index, name in enumerate(table.names):
        around = [logs[i] for i in (index - 1, index + 1) if 0 <= i < len(logs)]
        away = logs[index] - np.array(around)
        if np.abs(away).min() > np.log(LAYER_SLIP) and abs(np.sign(away).sum()) == len(away):
            findings.append(
                f"{metric}: layer {name!r} costs {np.exp(away[0]):.4g} times as much as its "
                f"neighbour (median {typical[index]:.4g} {UNITS[metric]}). A slip of unit?"
            )
    return findings


def _clock(table: CostTable) -> list[str]:
    if not table.clock_hz or not {"cycles", "latency"} <= set(table.values):
        return []
    expected = table.grid("cycles") / table.clock_hz * 1e3
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(table.grid("latency") / expected, nan=1.0)
    wrong = np.abs(ratio - 1) > CLOCK_SLIP
    if not wrong.any():
        return []
    return [
        f"latency: {int(wrong.sum())} cells contradict cycles / clock ({table.clock_hz:g} Hz); "
        f"they are {float(np.median(ratio[wrong])):.4g} times as long (median)."
    ]


def _cell(table: CostTable, at: np.ndarray | tuple[np.intp, ...]) -> str:
    layer, w, a = (int(i) for i in at)
    return f"layer {table.names[layer]!r}, w_bits = {w + 1}, a_bits = {a + 1}"
