"""Sweeps on a Ray cluster: two nodes of one core each on this machine."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from required import required

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray: tests tell nobody anything
os.environ.setdefault("RAY_worker_niceness", "0")  # its 15 starves on a busy machine

from haq_env.errors import InputError
from haq_env.leaderboard.engines import cluster, start_engine
from haq_env.leaderboard.protocol import Cell, Track
from haq_env.leaderboard.store import Store
from haq_env.leaderboard.sweep import sweep
from haq_env.summation import AVX2

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "leaderboard.py"
CHEAP = Track("cheap", {"evaluator": "ptq_bn"})

MISSING = subprocess.run([sys.executable, "-c", "import ray"], capture_output=True).returncode != 0

ray_is_there = pytest.mark.skipif(  # where it is required, its tests fail without it
    MISSING and not required("ray"), reason="Ray is not installed (pip install 'haq-env[ray]')"
)


@pytest.fixture
def nodes():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def runs_on(node) -> bool:
    """Tell whether a worker of this node is computing a run: Ray gives it the task's name then."""
    (raylet,) = node.all_processes["raylet"]
    workers = Path(f"/proc/{raylet.process.pid}/task/{raylet.process.pid}/children").read_text()
    for pid in workers.split():
        with suppress(OSError):  # it has just ended
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::run_cell"):
                return True
    return False


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'haq-env\[ray\]'"):
        start_engine("ray", tmp_path)


@ray_is_there
@pytest.mark.slow
def test_an_address_that_does_not_answer_is_one_clear_error_in_bounded_time(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 5.0)
    with socket.socket() as deaf:  # it takes connections, and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(InputError, match=f"no Ray cluster answers at {address}"):
            start_engine("ray", tmp_path, address=address)
        assert time.monotonic() - start < 20
    with pytest.raises(InputError, match="no Ray cluster answers at nowhere"):
        start_engine("ray", tmp_path, address="nowhere")


@ray_is_there
@pytest.mark.slow
def test_a_sweep_loses_a_node_and_completes_with_the_same_table(tmp_path, nodes):
    methods = ("random", "evolution", "annealing")
    cells = [Cell("cheap", name, seed, 30) for seed in (0, 1) for name in methods]
    store = Store(tmp_path / "cluster")
    (victim,) = nodes.worker_nodes

    def kill_in_the_middle_of_a_run() -> None:
        while not runs_on(victim):
            time.sleep(0.05)
        nodes.remove_node(victim, allow_graceful=False)

    engine = cluster.RayCluster(nodes.address, tmp_path / "local")
    assert engine.slots() == 2
    kill = threading.Thread(target=kill_in_the_middle_of_a_run, daemon=True)
    kill.start()
    states = sweep(store, cells, engine, tracks={"cheap": CHEAP})
    kill.join()
    assert states == {"done": len(cells)}
    assert max(row.attempts for row in store.rows()) == 2  # of the run that the node took with it
    alone = Store(tmp_path / "alone")
    inprocess = start_engine("inprocess", alone.folder)
    sweep(alone, cells, inprocess, tracks={"cheap": CHEAP})
    tables = [[replace(o, seconds=0.0) for o in each.outcomes()] for each in (store, alone)]
    assert tables[0] == tables[1]
    assert not (store.folder / "cache.sqlite").exists()  # evaluations stay on their machines


def command(store: Path, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one short run on a cluster, as somebody would from a shell."""
    argv = ["run", "--quick", "--methods", "random", "--seeds", "0", "--evaluations", "2"]
    argv += ["--engine", "ray", "--address", address, "--store", str(store)]
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *argv],
        capture_output=True,
        text=True,
        timeout=300,
        env=own | environment,
    )


@ray_is_there
@pytest.mark.slow
@pytest.mark.parametrize("named", ["as an address", "by RAY_ADDRESS"])
def test_the_same_command_runs_on_a_cluster(tmp_path, nodes, named):
    if named == "as an address":
        done = command(tmp_path, nodes.address)
    else:  # the documented `--address auto`, whichever clusters others have on this machine
        done = command(tmp_path, "auto", RAY_ADDRESS=nodes.address)
    assert done.returncode == 0, done.stderr
    assert "1 done" in done.stdout
    (outcome,) = Store(tmp_path / "quick").outcomes()
    assert outcome.evaluations == 2
    told = "from haq_env.leaderboard.arithmetic import arithmetic; print(arithmetic())"
    here = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, env=os.environ | AVX2
    )
    assert outcome.arithmetic == here.stdout.strip()  # the nodes are told how to add, too


@ray_is_there
@pytest.mark.slow
def test_auto_without_a_cluster_is_one_line_and_leaves_nothing_behind(tmp_path):
    with socket.socket() as free:  # where nothing listens any more
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = command(tmp_path / "store", "auto", RAY_ADDRESS=address)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Ray cluster answers on this machine")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()
