"""The comparison of agents: equal evaluations for all, nothing is run twice, nothing is made up."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import compare_agents
import numpy as np
import pytest
from scripts import Done, run_main

from haq_env.agents.methods import methods, search_method
from haq_env.report.runs import read_csv, write_csv
from haq_env.yardstick import optimum, yardstick

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "compare_agents.py"
SMALL = ["--tasks", "yardstick", "--methods", "random", "residual-ppo", "--seeds", "0", "1"]
SMALL += ["--evaluations", "12", "--jobs", "1"]


def compare(folder: Path, *argv: str) -> Done:
    folders = ["--out", str(folder / "out"), "--results", str(folder / "results")]
    return run_main(compare_agents.main, *folders, *argv)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    done = compare(folder, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_method_is_given_the_same_number_of_evaluations(small):
    runs = read_csv(small / "results" / "yardstick.csv")
    assert {(run.method, run.seed) for run in runs} == {
        (name, seed) for name in ("random", "residual-ppo") for seed in (0, 1)
    }
    assert {len(run.best_so_far) for run in runs} == {12}


def test_the_published_numbers_are_those_of_the_search_itself(small):
    run = next(
        run
        for run in read_csv(small / "results" / "yardstick.csv")
        if (run.method, run.seed) == ("residual-ppo", 1)
    )
    history = search_method("residual-ppo")(yardstick(1), 12, 1)
    assert run.best_so_far.tolist() == history.best_so_far()


def test_runs_whose_uniform_bits_have_other_accuracies_are_in_no_table_together(small, tmp_path):
    shutil.copytree(small / "results", tmp_path / "results")
    path = tmp_path / "results" / "yardstick.csv"
    runs = read_csv(path)
    of = next(run for run in runs if run.seed == 0)
    best = np.maximum(of.best_so_far, of.best_so_far[0] + 1.0)  # it learned nothing, elsewhere
    others = [run for run in runs if run is not of]
    write_csv([*others, replace(of, best_so_far=best)], path)
    done = compare(tmp_path, *SMALL)
    assert done.returncode == 2
    assert "begin with uniform bits of different accuracies" in done.stderr


def test_a_damaged_run_is_named(small, tmp_path):
    shutil.copytree(small / "out", tmp_path / "out")
    path = next((tmp_path / "out").rglob("*.json"))
    path.write_text('{"trials": [')
    done = compare(tmp_path, *SMALL)
    assert done.returncode == 2
    assert f"{path} is damaged" in done.stderr


def test_a_finished_run_is_not_run_again(small):
    files = sorted((small / "out").rglob("*.json"))
    before = [path.stat().st_mtime_ns for path in files]
    done = compare(small, *SMALL)
    assert "4 runs, 4 of them finished" in done.stdout
    assert [path.stat().st_mtime_ns for path in files] == before


def test_published_runs_are_not_mixed_with_runs_of_another_length(small):
    path = small / "results" / "yardstick.csv"
    before = path.read_bytes()
    for argv in (["--report-only"], []):
        done = compare(small, *SMALL[:-4], "--evaluations", "9", *argv)
        assert done.returncode == 2
        assert "has runs of 12 evaluations, not 9" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_table_that_is_filled_piece_by_piece_can_be_reported_at_any_time(tmp_path):
    argv = ["--tasks", "yardstick", "--evaluations", "6", "--jobs", "1"]
    for method, seed in (("random", "0"), ("annealing", "1")):
        done = compare(tmp_path, *argv, "--methods", method, "--seeds", seed)
        assert done.returncode == 0, done.stderr
    text = (tmp_path / "results" / "README.md").read_text()
    assert "| annealing | 1 of 2 tasks |" in text
    assert "there is nothing to draw" in text


@pytest.mark.parametrize("option", ["--jobs", "--evaluations"])
def test_numbers_that_make_no_sense_are_one_line(tmp_path, option):
    done = compare(tmp_path, *SMALL, option, "0")
    assert done.returncode == 2
    assert done.stderr == f"error: {option[2:]} must be 1 or more, not 0.\n"


def test_what_is_published_counts_as_run_on_a_machine_that_never_ran_it(small, tmp_path):
    (tmp_path / "results").mkdir()
    text = (small / "results" / "yardstick.csv").read_bytes()
    (tmp_path / "results" / "yardstick.csv").write_bytes(text)
    done = compare(tmp_path, *SMALL)
    assert "4 runs, 4 of them finished" in done.stdout
    assert (tmp_path / "results" / "yardstick.csv").read_bytes() == text


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was(tmp_path):
    argv = [*SMALL, "--methods", "random", "evolution", "annealing", "residual-ppo"]
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")]
    command += ["--results", str(tmp_path / "results"), *argv]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").rglob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    finished = len(list((tmp_path / "out").rglob("*.json")))
    assert finished >= 2
    for path in (tmp_path / "out").rglob("*.json"):
        assert len(json.loads(path.read_text())["trials"]) == 12
    done = compare(tmp_path, *argv)
    assert done.returncode == 0, done.stderr
    assert len(read_csv(tmp_path / "results" / "yardstick.csv")) == 8


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--methods", "alphazero"], "unknown method 'alphazero'"),
        (["--tasks", "HAQ-Toaster-v0"], "HAQ-Toaster"),
    ],
)
def test_unknown_names_are_one_clear_error_before_anything_is_run(tmp_path, argv, complaint):
    done = compare(tmp_path, *SMALL, *argv)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_agents_and_baselines_have_one_signature():
    task = yardstick(0)
    for name in ("random", "residual-ppo"):
        history = search_method(name)(task, 1, 0)
        assert len(history) == 1
        assert history[0].accuracy == task.evaluate(task.uniform()).accuracy
    assert {"sac", "haq-ddpg", "maskable-ppo", "bayesian", "ilp-fit"} <= set(methods())
    assert "residual-dqn" not in methods()


@pytest.mark.slow
def test_no_policy_beats_the_certified_optimum_and_the_residual_agent_comes_near():
    for instance in (100, 101):
        task = yardstick(instance)
        best = search_method("residual-ppo")(task, 100, 0).best.accuracy
        uniform = task.evaluate(task.uniform()).accuracy
        assert best <= optimum(task) + 1e-9
        assert best > uniform + 0.6 * (optimum(task) - uniform)


def test_the_yardstick_is_the_one_that_is_described():
    task = yardstick(3)
    assert len(task.layers) == 53
    assert task.budget.named == (4, 4)
    drop = 100 - task.evaluate(task.uniform()).accuracy
    assert drop == pytest.approx(100 * (1 - np.exp(-0.1)))
