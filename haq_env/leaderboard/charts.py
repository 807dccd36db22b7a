"""What the charts of the page show, as plain values that fit JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from haq_env.cost import CostTable
from haq_env.leaderboard.protocol import checkpoints, find_track
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.verified import Scored, VerifiedRun
from haq_env.report.bootstrap import bootstrap_band
from haq_env.report.estimates import performance_profile
from haq_env.report.figure import LOOKS, look
from haq_env.report.roofline import WIDTHS
from haq_env.report.scores import Array, iqm_curve
from haq_env.task import Task

REPETITIONS = 300  # of the bootstrap of bands, which are only looked at
POINTS = 80  # of a curve
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 400, 1000)  # of evaluations
ALL = "all tracks (score)"
LOOK_COLOURS = (2, 0, 1, 3, 4)  # of the page's palette: the colours that figures have


def page_data(standings: Standings) -> dict[str, Any]:
    """Gather what the page draws.

    Args:
        standings: the verified runs on one scale.

    Returns:
        ``entries`` (names), ``order`` (of standing), ``looks``, ``machines`` (layers and costs for
        rooflines), ``tracks``, ``policies``, ``runs``, ``curves``, ``profile`` and ``pareto``.
    """
    entries = list(standings.entries)
    tracks = sorted({run.cell.track for runs in standings.entries.values() for run in runs})
    tasks = {name: find_track(name).task() for name in tracks}
    names = _machines(tasks)
    machines = list(dict.fromkeys(names.values()))
    by_machine = {names[name]: tasks[name] for name in reversed(tracks)}
    about = [
        {
            "name": name,
            "machine": machines.index(names[name]),
            "metric": tasks[name].budget.metric,
            "ratio": tasks[name].budget.ratio,
        }
        for name in tracks
    ]
    policies, runs = _runs(standings, tracks)
    return {
        "entries": entries,
        "order": [entries.index(row.entry) for row in standings.rows],
        "looks": [
            {"label": each.label, "marker": each.marker, "colour": colour}
            for each, colour in zip(LOOKS, LOOK_COLOURS, strict=True)
        ],
        "machines": [_machine(name, by_machine[name]) for name in machines],
        "tracks": about,
        "policies": policies,
        "runs": runs,
        "curves": {
            **({ALL: _score_curves(standings)} if standings.anchors else {}),
            **{name: _curves(standings, name) for name in tracks},
        },
        "profile": _profile(standings),
        "pareto": _pareto(standings, tasks),
    }


def _machines(tasks: Mapping[str, Task]) -> dict[str, str]:
    """Name the device of each track, and the network on it where there are several."""
    networks = {task.layers.network for task in tasks.values()}
    return {
        name: task.costs.hardware + (f", {task.layers.network}" if len(networks) > 1 else "")
        for name, task in tasks.items()
    }


def _machine(name: str, task: Task) -> dict[str, Any]:
    costs = task.costs
    layers = [
        [layer.name, LOOKS.index(look(layer)), layer.macs * costs.batch] for layer in task.layers
    ]
    found: dict[str, Any] = {"name": name, "layers": layers, "roofs": _roofs(costs)}
    if found["roofs"]:
        found |= {name: _short(costs.values[name].reshape(-1)) for name in ("traffic", "latency")}
    return found


def _roofs(costs: CostTable) -> dict[str, Any] | None:
    if costs.roofs is None or not {"traffic", "latency"} <= costs.values.keys():
        return None
    labels: dict[float, list[str]] = {}  # machines without narrow units have equal roofs
    for width in WIDTHS:
        peak = float(costs.roofs.peak[width - 1, width - 1])
        labels.setdefault(peak, []).append(f"w{width}a{width}")
    peaks = [[", ".join(names), peak] for peak, names in labels.items()]
    return {"bandwidth": costs.roofs.bandwidth, "peaks": peaks}


def _runs(
    standings: Standings, tracks: Sequence[str]
) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """List scored policies once, and runs with their policies at checkpoints."""
    numbers: dict[Scored, int] = {}
    runs = []
    for index, own in enumerate(standings.entries.values()):
        for run in own:
            judged = [(n, run.best_after(n)) for n in checkpoints(run.cell)]
            for policy in (run.steps[0][1], *(policy for _, policy in judged)):
                numbers.setdefault(policy, len(numbers))
            runs.append(
                {
                    "entry": index,
                    "track": tracks.index(run.cell.track),
                    "seed": run.cell.seed,
                    "uniform": numbers[run.steps[0][1]],
                    "judged": [[count, numbers[policy]] for count, policy in judged],
                }
            )
    rows: list[list[Any]] = [
        [p.w_bits, p.a_bits, round(p.cost_ratio, 6), round(p.accuracy, 3), round(p.score, 3)]
        for p in numbers
    ]
    return rows, runs


def _score_curves(standings: Standings) -> dict[str, Any]:
    lines = []
    for index, name in enumerate(standings.entries):
        counts = standings.counts(name)
        if not counts:
            continue
        scores = [standings.scores(name, count) or [] for count in counts]
        tasks = [np.stack(each, axis=1) for each in zip(*scores, strict=True)]
        lines.append(_line(index, counts, tasks))
    return {
        "unit": "score",
        "step": False,
        "lines": lines,
        "ticks": sorted({count for line in lines for count in line["x"]}),
        "references": [[0, "uniform", True], [1, "best known", False]],
        "note": "IQM of the scores of all runs at the checkpoints, with 95 % bands where at most 8 "
        "are shown.",
    }


def _curves(standings: Standings, track: str) -> dict[str, Any]:
    """Draw accuracies inside the search, which the searches were after."""
    lines, every = [], []
    for index, own in enumerate(standings.entries.values()):
        runs = [run for run in own if run.cell.track == track]
        if not runs:
            continue
        every += runs
        last = min(run.cell.evaluations for run in runs)
        grid = [int(n) for n in np.unique(np.geomspace(1, last, POINTS).round())]
        curves = np.array([[run.best_after(n).accuracy for n in grid] for run in runs])
        lines.append(_line(index, grid, [curves]))
    uniform = every[0].steps[0][1].accuracy
    best = max(run.best_after(run.cell.evaluations).accuracy for run in every)
    return {
        "unit": "held-out accuracy, %",
        "step": True,
        "lines": lines,
        "ticks": [n for n in TICKS if n <= max(max(line["x"]) for line in lines)],
        "references": [[uniform, "uniform", True], [best, "best", False]],
        "note": "IQM over seeds of the best accuracy inside the search, with 95 % bands where at "
        "most 8 are shown. The maximum of noisy numbers flatters; the ranking is by fresh seeds "
        "and test images.",
    }


def _line(index: int, x: Sequence[int], tasks: Sequence[Array]) -> dict[str, Any]:
    low, high = bootstrap_band(tasks, repetitions=REPETITIONS)
    middle = iqm_curve(tasks)
    return {"index": index, "x": list(x), "y": _short(middle), "low": _short(low)} | {
        "high": _short(high)
    }


def _profile(standings: Standings) -> dict[str, Any]:
    last = standings.main
    scores = {
        index: found
        for index, name in enumerate(standings.entries)
        if last and (found := standings.scores(name, last)) is not None
    }
    if not scores:
        return {"lines": [], "domain": [0, 1], "count": last}
    pooled = np.concatenate([task for tasks in scores.values() for task in tasks])
    left = max(-1.0, min(-0.05, float(pooled.min()) - 0.02))
    right = max(1.05, float(pooled.max()) + 0.02)
    taus = np.linspace(left, right, 160)
    lines = []
    for index, tasks in scores.items():
        profile = performance_profile(tasks, taus, repetitions=REPETITIONS)
        values = {"y": profile.share, "low": profile.low, "high": profile.high}
        lines.append(
            {"index": index, "x": _short(taus)} | {k: _short(v) for k, v in values.items()}
        )
    return {"lines": lines, "domain": [left, right], "count": last}


def _pareto(standings: Standings, tasks: dict[str, Task]) -> dict[str, Any]:
    """Put each budget of a device at its cost: test error, mean over seeds."""
    devices: dict[str, list[str]] = {}
    for name, machine in _machines(tasks).items():
        devices.setdefault(f"{machine}, {tasks[name].budget.metric}", []).append(name)
    return {
        device: {
            "lines": [
                _front(index, own, names)
                for index, own in enumerate(standings.entries.values())
                if any(run.cell.track in names for run in own)
            ],
            "fixed": _fixed(standings, names),
        }
        for device, names in sorted(devices.items())
    }


def _front(index: int, runs: Sequence[VerifiedRun], names: Sequence[str]) -> dict[str, Any]:
    points = []
    for name in names:
        ends = [_end(run) for run in runs if run.cell.track == name]
        if ends:
            ratio = float(np.mean([policy.cost_ratio for policy in ends]))
            points.append((ratio, 100 - float(np.mean([policy.score for policy in ends]))))
    return {"index": index, **_columns(points)}


def _fixed(standings: Standings, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the fronts that belong to no entry: uniform policies and the best known ones."""
    first = {run.cell.track: run.steps[0][1] for runs in standings.entries.values() for run in runs}
    uniform = [(first[name].cost_ratio, 100 - first[name].score) for name in names]
    anchors = [standings.anchors[name].best for name in names if name in standings.anchors]
    best = [(policy.cost_ratio, 100 - policy.score) for policy in anchors]
    fronts = (("uniform", uniform, True), ("best known", best, False))
    return [{"name": n, "above": up, **_columns(points)} for n, points, up in fronts if points]


def _columns(points: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    ordered = np.array(sorted(points))
    return {"x": _short(ordered[:, 0]), "y": _short(ordered[:, 1])}


def _end(run: VerifiedRun) -> Scored:
    return run.best_after(checkpoints(run.cell)[-1])


def _short(values: Array) -> list[Any]:
    """Return numbers with five digits, which is more than a screen has; None for NaN."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
