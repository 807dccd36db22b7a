"""`haq-env search` with worker processes and a cache, as real processes, one of which is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SHORT = ["--algo", "random", "--final-steps", "0", "--final-seeds", "1", "--shortlist", "1"]


def start(out: Path, *argv: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "haq_env", "search", *SHORT, "--out", str(out), *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(out: Path, *argv: str) -> None:
    process = start(out, *argv)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def log_of(folder: Path) -> list[dict[str, str]]:
    path = folder / "episodes.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answers(folder: Path) -> list[tuple[str, str, str]]:
    return [(row["w_bits"], row["a_bits"], row["accuracy"]) for row in log_of(folder)]


def workers_of(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    started = [int(child) for child in children]
    return [pid for pid in started if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_workers_and_a_cache_change_no_answer(tmp_path):
    plain, shared, again = tmp_path / "plain", tmp_path / "shared", tmp_path / "again"
    cache = ["--cache", str(tmp_path / "cache.sqlite")]
    finish(plain, "--episodes", "6")
    finish(shared, "--episodes", "6", *cache, "--workers", "2")
    finish(again, "--episodes", "6", *cache)
    assert answers(shared) == answers(plain) == answers(again)
    assert {row["cache_hit"] for row in log_of(shared)} == {"False"}
    assert {row["cache_hit"] for row in log_of(again)} == {"True"}
    ours, theirs = (json.loads((f / "policy.json").read_text()) for f in (shared, plain))
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_worker_that_is_killed_is_one_line_and_the_run_goes_on(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = start(broken, "--episodes", "12", "--workers", "2")
    while len(log_of(broken)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.startswith("error: a worker process ended while it measured a policy")
    assert err.endswith("--resume goes on from the last finished episode.\n")
    assert err.count("\n") == 1
    before = answers(broken)
    assert 3 <= len(before) < 13
    finish(broken, "--episodes", "12", "--resume")  # with one process, which changes no answer
    assert answers(broken)[: len(before)] == before
    finish(whole, "--episodes", "12")
    assert answers(broken) == answers(whole)
