"""Runs on two nodes of one core each, against one process: how much faster is the cluster?

    python benchmarks/leaderboard_ray.py [--runs 8] [--evaluations 20] [--record]

Starts a Ray cluster of two nodes on this machine, and ends it. Both sides run the same runs of the
digits with nothing in their caches; the time includes the start of worker processes. Figures of a
machine that does something else meanwhile, or whose cores are hyperthreads, say little. Exit code 1
if the target is not met.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers side by side, a core each
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # its 15 would be no match for one process of 0

import tyro
from leaderboard_figures import Figure, load, tell

from haq_env.errors import InputError
from haq_env.leaderboard.engines import Engine, start_engine
from haq_env.leaderboard.engines.cluster import RayCluster
from haq_env.leaderboard.protocol import Cell
from haq_env.leaderboard.store import Store
from haq_env.leaderboard.sweep import sweep

TARGET = 1.6  # times the throughput of one process; 2 would be all that two cores have


@dataclass(frozen=True)
class Settings:
    """Compare a cluster of two nodes with one process."""

    runs: int = 8
    """Runs of random search on the digits."""
    evaluations: int = 20
    """Of each run; half a second each."""
    track: str = "digits-bismo-edge-w3a2"
    """Name of the track."""
    record: bool = False
    """Put the figure into benchmarks/results/leaderboard/figures.md."""


def timed(cells: list[Cell], folder: Path, engine: Engine) -> float:
    """Run all cells; return the seconds."""
    store = Store(folder)
    start = time.perf_counter()
    states = sweep(store, cells, engine)
    seconds = time.perf_counter() - start
    if states["done"] != len(cells):
        raise InputError(f"the sweep ended with {dict(states)}.")
    return seconds


def main() -> None:
    """Measure both, and print one line each."""
    settings = tyro.cli(Settings, description=__doc__)
    try:
        from ray.cluster_utils import Cluster
    except ModuleNotFoundError:
        print("error: Ray is not installed: pip install 'haq-env[ray]'", file=sys.stderr)
        sys.exit(2)

    seeds = range(100, 100 + settings.runs)  # tuning seeds: nothing here is for publishing
    cells = [Cell(settings.track, "random", seed, settings.evaluations) for seed in seeds]
    before = load()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            nodes.add_node(num_cpus=1)
            two = timed(cells, folder / "two", RayCluster(nodes.address, folder / "local"))
        finally:
            nodes.shutdown()  # type: ignore[no-untyped-call]
        one = timed(cells, folder / "one", start_engine("inprocess", folder / "one"))
    evaluations = settings.runs * settings.evaluations
    print(f"{settings.runs} runs of {settings.evaluations} evaluations, load before: {before:.1f}")
    for name, seconds in (("one process", one), ("two nodes", two)):
        print(f"{name}: {seconds:.1f} s, {evaluations / seconds:.2f} evaluations a second")
    command = f"python benchmarks/leaderboard_ray.py --runs {settings.runs}"
    figure = Figure(
        "throughput of two one-core Ray nodes against one process",
        f"at least {TARGET:g} x",
        f"{one / two:.2f} x",
        one / two >= TARGET,
        f"{command} --evaluations {settings.evaluations}",
    )
    sys.exit(not tell([figure], before, settings.record))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
