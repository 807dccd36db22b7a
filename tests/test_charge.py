"""What a search computes before its first evaluation is told, written down, and never lost."""

import json
from pathlib import Path

import pytest
from scripts import run_main

from haq_env import ResidualEnv, make_task
from haq_env.agents.run import search_with_agent
from haq_env.agents.transfer import Source, apply_agent
from haq_env.cli import main
from haq_env.errors import InputError
from haq_env.search import SEARCH
from haq_env.search.charge import Charge, charge_file
from haq_env.search.history import History
from haq_env.search.run import search_with_baseline
from haq_env.search.sensitivity import measure_sensitivity
from haq_env.task import Task
from haq_env.yardstick import yardstick


@pytest.fixture(autouse=True)
def few_images(monkeypatch) -> None:
    """Tables of 16 images: what they took is what is looked at here."""

    def quick(task: Task, method: str, seed: int = 0):
        return measure_sensitivity(task, method, seed, images=16)

    monkeypatch.setattr("haq_env.search.sensitivity.measure_sensitivity", quick)


def digits() -> Task:
    return make_task(evaluator="ptq_bn")


def test_an_agent_that_corrects_a_table_is_charged_for_it(tmp_path):
    env = ResidualEnv(digits())
    history = search_with_agent(env, "ppo", 1, 0)
    assert history.charge == env.charge
    assert history.charge.evaluations > 0


def test_an_agent_that_decides_once_is_charged_for_its_table(tmp_path):
    search_with_agent(ResidualEnv(digits()), "ppo", 1, 0, folder=tmp_path)
    (tmp_path / "settings.json").write_text('{"env": "HAQ-BISMO-Edge-Residual-v0", "algo": "ppo"}')
    source = Source.open(tmp_path)
    env, log = ResidualEnv(digits(), scales=source.scales), tmp_path / "once.csv"
    history = apply_agent(source, env, log=log)
    assert history.charge == env.charge
    assert History.read(log).charge == env.charge


def test_what_measures_nothing_before_is_charged_nothing():
    assert SEARCH["random"](yardstick(0), 2, 0).charge is None
    assert search_with_agent(ResidualEnv(yardstick(0)), "ppo", 1, 0).charge == (0.0, 0.0)


def by_agent(folder: Path, resume: bool = False) -> History:
    return search_with_agent(ResidualEnv(digits()), "ppo", 2, 0, folder=folder, resume=resume)


def by_program(folder: Path, resume: bool = False) -> History:
    return search_with_baseline(digits(), "ilp-fit", 3, 0, folder=folder, resume=resume)


@pytest.mark.parametrize("search", [by_agent, by_program])
def test_a_search_that_goes_on_has_paid_when_it_began(search, tmp_path):
    first = search(tmp_path).charge
    assert first.evaluations > 0
    assert search(tmp_path, resume=True).charge == first  # a second one takes another time


@pytest.mark.parametrize("search", [by_agent, by_program])
def test_a_search_that_is_thrown_away_takes_all_of_it_along(search, tmp_path):
    search(tmp_path)
    search_with_baseline(digits(), "random", 2, 0, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["episodes.csv"]
    assert History.read(tmp_path / "episodes.csv").charge is None


def test_a_charge_is_read_back_as_it_was(tmp_path):
    charge = Charge(1 / 3, 2.9)
    charge.save(tmp_path / "charge.json")
    assert Charge.load(tmp_path / "charge.json") == charge
    assert Charge.load(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"seconds": 1}', '{"seconds": "x", "evaluations": 1}',
             '{"seconds": NaN, "evaluations": 1}', '{"seconds": -1, "evaluations": 1}'],
)  # fmt: skip
def test_a_damaged_charge_is_one_error_that_names_the_file(text, tmp_path):
    search_with_baseline(yardstick(0), "random", 2, 0, folder=tmp_path)
    log = tmp_path / "episodes.csv"
    charge_file(log).write_text(text)
    with pytest.raises(InputError, match=r"episodes\.charge\.json is damaged"):
        search_with_baseline(yardstick(0), "random", 2, 0, folder=tmp_path, resume=True)


def test_the_policy_file_tells_the_charge_and_a_resumed_run_tells_the_same(tmp_path):
    argv = ["--algo", "ilp-fit", "--episodes", "1", "--evaluator", "ptq_bn", "--out", str(tmp_path)]
    argv += ["--final-steps", "0", "--final-seeds", "1", "--shortlist", "1"]
    done = run_main(main, "search", *argv)
    assert done.returncode == 0, done.stderr
    policy = (tmp_path / "policy.json").read_bytes()
    charge = json.loads(policy)["charge"]
    assert charge["evaluations"] > 0
    assert f"the time of {charge['evaluations']:.1f} more" in " ".join(done.stdout.split())
    assert run_main(main, "search", *argv, "--resume").returncode == 0
    assert (tmp_path / "policy.json").read_bytes() == policy


def test_an_empty_history_says_so_when_it_is_asked_for_its_best():
    with pytest.raises(InputError, match="nothing has been measured yet"):
        _ = History().best
