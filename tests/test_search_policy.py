"""One function and one list of names search by everything; the command line takes that list too."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scripts import Done, run_main
from torch import nn

import haq_env
from haq_env import InputError, search_policy
from haq_env.agents.algorithms import ALGORITHMS
from haq_env.agents.methods import agents, check_env, env_id, methods, search_method
from haq_env.cli import main
from haq_env.commands.search import Search
from haq_env.env import QuantizationEnv
from haq_env.evaluation import Evaluation
from haq_env.make import make_env, make_task
from haq_env.search import SEARCH
from haq_env.search.history import History
from haq_env.yardstick import yardstick

TIER = ["--evaluator", "ptq_bn", "--final-steps", "0", "--final-seeds", "1", "--shortlist", "1"]


class Flat:
    """Likes all policies."""

    float_accuracy = 90.0

    def evaluate(self, bits):
        return Evaluation(50.0)


class Steep(Flat):
    """Likes many bits."""

    def evaluate(self, bits):
        return Evaluation(float(bits.mean()))


def small(evaluator=Steep):
    return make_task(evaluator=evaluator())


def search(*argv: str) -> Done:
    return run_main(main, "search", *argv)


def bits(history: History) -> list[tuple[str, str]]:
    return [(trial.w_bits, trial.a_bits) for trial in history]


# -- names -------------------------------------------------------------------------------------


def test_baselines_and_agents_are_one_list():
    assert haq_env.methods() == methods() == (*SEARCH, *agents())
    assert {*ALGORITHMS, "residual-ppo"} <= set(agents())
    assert "residual-dqn" not in agents()
    assert {f"transfer-{name}" for name in agents()} == {*methods(transfer=True)} - {*methods()}


def test_names_and_the_function_load_neither_torch_nor_an_agents_library():
    code = (
        "import sys, haq_env; haq_env.methods(), haq_env.search_policy, haq_env.Charge; "
        "print({'torch', 'stable_baselines3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", agents())
def test_every_agent_can_play_the_variant_that_it_takes(name):
    check_env(name, make_env(env_id(name, "HAQ-BitFusion-v0")))


@pytest.mark.parametrize(
    ("name", "given", "played"),
    [
        ("residual-ppo", "HAQ-BitFusion-Energy-v0", "HAQ-BitFusion-Energy-Residual-v0"),
        ("residual-ppo", "HAQ-BitFusion-Residual-v0", "HAQ-BitFusion-Residual-v0"),
        ("ppo", "HAQ-BitFusion-Residual-v0", "HAQ-BitFusion-Residual-v0"),
        ("ppo", "HAQ-BitFusion-v0", "HAQ-BitFusion-v0"),
        ("dqn", "HAQ-ModelSize-v0", "HAQ-ModelSize-Discrete-v0"),
        ("maskable-ppo", "haq_env:HAQ-ModelSize", "haq_env:HAQ-ModelSize-Discrete"),
        ("random", "HAQ-BitFusion-v0", "HAQ-BitFusion-v0"),
        ("random", "HAQ-BitFusion-Discrete-v0", "HAQ-BitFusion-Discrete-v0"),
        ("residual-ppo", "Own-v0", "Own-v0"),
        ("residual-ppo", "not an id", "not an id"),
    ],
)
def test_a_method_takes_its_own_variant_of_a_plain_id_and_no_other(name, given, played):
    assert env_id(name, given) == played


@pytest.mark.parametrize(
    ("name", "given", "complaint"),
    [
        ("residual-ppo", "HAQ-BISMO-Edge-Discrete-v0", "needs the actions of a -Residual id, not"),
        ("dqn", "HAQ-BISMO-Edge-Residual-v0", "dqn needs discrete actions, not those of"),
        ("sac", "HAQ-BISMO-Edge-Discrete-v0", "give HAQ-BISMO-Edge-v0."),
    ],
)
def test_an_id_that_contradicts_the_method_is_one_clear_error(name, given, complaint, tmp_path):
    done = search("--algo", name, "--env", given, "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_residual_agent_needs_a_table_also_in_an_environment_of_ones_own():
    with pytest.raises(InputError, match="corrects a sensitivity table, which QuantizationEnv has"):
        check_env("residual-ppo", QuantizationEnv(yardstick(0)))


def test_an_agent_that_learns_elsewhere_first_is_told_how(tmp_path):
    done = search("--algo", "transfer-residual-ppo", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "search with residual-ppo and --transfer-from" in done.stderr
    with pytest.raises(InputError, match="learns on another task first"):
        search_method("transfer-ppo")


# -- what a run records ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (("residual-ppo", "HAQ-BISMO-Edge-v0"), ("ppo", "HAQ-BISMO-Edge-Residual-v0")),
        (("residual-haq-ddpg", "HAQ-BISMO-Edge-v0"), ("haq-ddpg", "HAQ-BISMO-Edge-Residual-v0")),
        (("dqn", "HAQ-BISMO-Edge-v0"), ("dqn", "HAQ-BISMO-Edge-Discrete-v0")),
    ],
)
def test_a_run_is_recorded_alike_however_it_was_asked_for(short, long):
    records = [Search(algo=algo, env=env).record() for algo, env in (short, long)]
    assert records[0] == records[1]
    assert (records[0]["algo"], records[0]["env"]) == long


def test_a_residual_run_is_recorded_resumed_and_carried_on_by_either_name(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    argv = ["--episodes", "1", *TIER]
    done = search("--algo", "residual-ppo", "--out", str(first), *argv)
    assert done.returncode == 0, done.stderr
    policy = json.loads((first / "policy.json").read_text())
    assert (policy["env"], policy["algorithm"]) == ("HAQ-BISMO-Edge-Residual-v0", "ppo")
    assert policy["charge"]["evaluations"] > 0
    kept = (first / "policy.json").read_bytes()
    explicit = ["--env", "HAQ-BISMO-Edge-Residual-v0", "--algo", "ppo"]
    assert search(*explicit, "--out", str(first), *argv, "--resume").returncode == 0
    assert (first / "policy.json").read_bytes() == kept
    once = ["--transfer-from", str(first), "--episodes", "0", "--network", "mobilenet_v2", *TIER]
    done = search("--algo", "residual-ppo", *once, "--out", str(second))
    assert done.returncode == 0, done.stderr
    done = search("--algo", "residual-sac", *once, "--out", str(second), "--overwrite")
    assert "is residual-ppo, not sac: take residual-ppo." in done.stderr
    assert json.loads((second / "policy.json").read_text())["charge"]["evaluations"] > 0


# -- one function ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "uniform", "sac", "residual-ppo", "maskable-ppo"])
@pytest.mark.parametrize("evaluations", [1, 4])
def test_every_method_measures_as_many_policies_as_it_is_told(name, evaluations, tmp_path):
    task, lengths = yardstick(0), []
    history = search_policy(
        task,
        name,
        evaluations,
        folder=tmp_path,
        progress=lambda history: lengths.append(len(history)),
    )
    assert len(history) == evaluations == max(lengths)
    assert (history[0].bits == task.uniform()).all()
    assert bits(History.read(tmp_path / "episodes.csv")) == bits(history)
    assert bits(search_policy(yardstick(0), name, evaluations)) == bits(history)
    assert bits(search_method(name)(yardstick(0), evaluations, 0)) == bits(history)


@pytest.mark.parametrize("name", ["annealing", "ppo"])
def test_a_search_in_a_folder_goes_on_where_it_was(name, tmp_path):
    def stop(history: History) -> None:
        if len(history) == 14:
            raise KeyboardInterrupt

    broken = search_policy(yardstick(0), name, 16, 3, folder=tmp_path, progress=stop)
    assert broken.interrupted
    whole = search_policy(yardstick(0), name, 16, 3, folder=str(tmp_path), resume=True)
    assert not whole.interrupted
    assert bits(whole) == bits(search_policy(yardstick(0), name, 16, 3))
    with pytest.raises(InputError, match="has 16 evaluations already, more than 5"):
        search_policy(yardstick(0), name, 5, 3, folder=tmp_path, resume=True)
    assert len(History.read(tmp_path / "episodes.csv")) == 16


class Stopped:
    """Ctrl-C comes in the first evaluation."""

    float_accuracy = 100.0

    def evaluate(self, bits):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["random", "ppo"])
def test_ctrl_c_ends_a_search_with_what_was_found_and_a_comparison_altogether(name, tmp_path):
    task = make_task(evaluator=Stopped())
    history = search_policy(task, name, 5, folder=tmp_path)
    assert history.interrupted
    assert len(history) == 0
    with pytest.raises(InputError, match="nothing has been measured yet"):
        _ = history.best
    with pytest.raises(KeyboardInterrupt):
        search_method(name)(task, 5, 0)


@pytest.mark.parametrize("name", ["random", "sac", "residual-ppo"])
@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"evaluations": 0}, "evaluations must be an integer, 1 or more, not 0"),
        ({"evaluations": -1}, "evaluations must be an integer, 1 or more, not -1"),
        ({"evaluations": 3.0}, "evaluations must be an integer, 1 or more, not 3.0"),
        ({"evaluations": "3"}, "evaluations must be an integer, 1 or more, not '3'"),
        ({"evaluations": 3, "seed": -1}, "seed must be an integer, 0 or more, not -1"),
        ({"evaluations": 3, "seed": 2**40}, "seed must be an integer, 0 or more"),
        ({"evaluations": 3, "resume": True}, "to resume a search give its folder"),
    ],
)
def test_what_cannot_be_searched_is_said_in_evaluations(name, given, complaint):
    with pytest.raises(InputError, match=complaint):
        search_policy(yardstick(0), name, **given)


def test_an_unknown_method_is_named_with_the_nearest_known_one():
    with pytest.raises(InputError, match="Did you mean 'residual-ppo'"):
        search_policy(yardstick(0), "residual-ppp", 3)


def test_a_function_in_place_of_a_name_is_told_how_it_gets_one():
    with pytest.raises(InputError, match=r"SEARCH\.register\('mine', function\)"):
        search_policy(yardstick(0), search_method("random"), 3)


def test_one_evaluation_leaves_nothing_of_an_agents_earlier_run(tmp_path):
    search_policy(yardstick(0), "ppo", 3, folder=tmp_path)
    search_policy(yardstick(0), "ppo", 1, folder=tmp_path)
    kept = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert kept == {"episodes.csv", "search.json"}
    assert len(search_policy(yardstick(0), "ppo", 3, folder=tmp_path, resume=True)) == 3


@pytest.mark.parametrize("name", ["random", "sac", "ppo"])
def test_a_search_that_fails_at_once_leaves_the_earlier_one(name, tmp_path):
    class Broken(Steep):
        def evaluate(self, bits):
            raise InputError("no such images")

    search_policy(small(), name, 4, folder=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="no such images"):
        search_policy(small(Broken), name, 4, folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["random", "ppo"])
@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"seed": 1}, "method_seed was 0 and is now 1"),
        ({"method": "greedy"}, "method was '(random|ppo)' and is now 'greedy'"),
        ({"budget": 0.6}, "budget was .* and is now"),
        ({"evaluator": Flat}, "evaluator was 'Steep' and is now 'Flat'"),
    ],
)
def test_a_search_never_goes_on_as_another_one(name, other, complaint, tmp_path):
    def task(budget="w3a2", evaluator=Steep, **_):
        return make_task(budget=budget, evaluator=evaluator())

    search_policy(task(), name, 3, folder=tmp_path)
    before = (tmp_path / "episodes.csv").read_bytes()
    method, seed = other.get("method", name), other.get("seed", 0)
    with pytest.raises(InputError, match=f"cannot resume .*{complaint}"):
        search_policy(task(**other), method, 5, seed, folder=tmp_path, resume=True)
    assert (tmp_path / "episodes.csv").read_bytes() == before
    assert len(search_policy(task(), name, 4, folder=tmp_path, resume=True)) == 4
    assert len(search_policy(task(**other), method, 3, seed, folder=tmp_path)) == 3  # anew


def test_a_search_goes_on_with_the_same_weights_and_images_only(tmp_path):
    def task(seed=0, images=0):
        torch.manual_seed(seed)
        stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        network = nn.Sequential(stem, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        rng = np.random.default_rng(images)
        parts = [(rng.random((20, 1, 8, 8), np.float32), np.arange(20) % 2) for _ in range(3)]
        data = haq_env.Dataset.of("mine", *parts, classes=2, mean=[0.5], std=[0.5])
        return make_task(network, data, budget="w4a4", evaluator="ptq_bn")

    search_policy(task(), "random", 2, folder=tmp_path)
    with pytest.raises(InputError, match=r"cannot resume .*: weights was .* and is now"):
        search_policy(task(seed=1), "random", 3, folder=tmp_path, resume=True)
    with pytest.raises(InputError, match=r"cannot resume .*: images was .* and is now"):
        search_policy(task(images=1), "random", 3, folder=tmp_path, resume=True)
    assert len(search_policy(task(), "random", 3, folder=tmp_path, resume=True)) == 3
    (tmp_path / "search.json").unlink()
    with pytest.raises(InputError, match=r"cannot resume .*: it has no search\.json"):
        search_policy(task(), "random", 4, folder=tmp_path, resume=True)


def test_the_command_line_and_the_function_leave_each_others_folders_alone(tmp_path):
    flags = ("--algo", "random", "--episodes", "1", *TIER)
    assert search(*flags, "--out", str(tmp_path / "command")).returncode == 0
    before = (tmp_path / "command" / "episodes.csv").read_bytes()
    for resume in (False, True):
        with pytest.raises(InputError, match="is the folder of a haq-env command"):
            search_policy(small(), "random", 3, folder=tmp_path / "command", resume=resume)
    assert (tmp_path / "command" / "episodes.csv").read_bytes() == before
    search_policy(small(), "random", 2, folder=tmp_path / "function")
    done = search(*flags, "--out", str(tmp_path / "function"), "--resume")
    assert (done.returncode, "it has no settings.json" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        (lambda task, evaluations, seed: None, "must return its History, not NoneType"),
        (lambda task, evaluations: None, "is called as search.task, evaluations, seed.: too many"),
        ("nowhere:search", "'mine' cannot be loaded from 'nowhere:search': No module named 'nowh"),
        ("haq_env.search.greedy:gredy", "'mine' cannot be loaded from .*: module .* no attribute"),
    ],
)
def test_a_search_of_ones_own_that_cannot_be_called_is_one_clear_error(own, complaint, monkeypatch):
    monkeypatch.setitem(SEARCH._entries, "mine", own)
    with pytest.raises(InputError, match=complaint):
        search_policy(small(), "mine", 3)


ENDLESS = """
import sys, time
from haq_env import Evaluation, make_task, search_policy

class Slow:
    float_accuracy = 90.0
    def evaluate(self, bits):
        time.sleep(0.005)
        return Evaluation(50.0)

search_policy(make_task(evaluator=Slow()), "random", 10**6, folder=sys.argv[1])
"""


def test_two_processes_never_search_in_one_folder(tmp_path):
    log = tmp_path / "episodes.csv"
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)]) as other:
        try:
            deadline = time.monotonic() + 120
            while not log.exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            for resume in (False, True):
                with pytest.raises(InputError, match="another search is going on in"):
                    search_policy(yardstick(0), "random", 3, folder=tmp_path, resume=resume)
            refused = search("--algo", "random", "--out", str(tmp_path), "--overwrite", *TIER)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert "another search is going on in" in refused.stderr
            assert other.poll() is None
        finally:
            other.kill()  # a lock that outlived it would have to be removed by hand
    assert History.read(log)  # every row whole
    assert len(search_policy(yardstick(0), "random", 3, folder=tmp_path)) == 3


def over_budget(task, evaluations, seed, history=None):
    history = haq_env.begin(task, evaluations, history)
    haq_env.measure(task, task.space.highest, history, project=False)
    return history


def endless(task, evaluations, seed, history=None):
    history = haq_env.begin(task, evaluations, history)
    while True:
        haq_env.measure(task, task.space.highest, history)


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        (over_budget, "over the budget of .* task.project"),
        (endless, "goes on after the 5 evaluations that it has"),
    ],
)
def test_no_search_of_ones_own_leaves_the_budget_or_the_evaluations(
    search, complaint, tmp_path, monkeypatch
):
    monkeypatch.setitem(SEARCH._entries, "mine", search)
    with pytest.raises(InputError, match=complaint):
        search_policy(make_task(evaluator=Flat()), "mine", 5, folder=tmp_path)
    task = make_task(evaluator=Flat())
    assert all(task.budget.fits(trial.bits) for trial in History.read(tmp_path / "episodes.csv"))


def test_a_search_of_ones_own_finds_all_that_it_needs_in_the_package():
    task, history = make_task(evaluator=Flat()), haq_env.History()
    haq_env.begin(task, 3, history)
    trials = haq_env.measure_all(task, [task.space.highest, task.space.lowest], history)
    history.charge = haq_env.Charge(seconds=1.0, evaluations=2.0)
    assert all(isinstance(trial, haq_env.Trial) for trial in trials)
    env = QuantizationEnv(task)
    env.reset()
    done = False
    while not done:
        _, _, done, _, info = env.step(env.action_space.sample())
    assert haq_env.episode_trial(task, info).accuracy == 50.0
    assert (len(history), history.charge.evaluations) == (3, 2.0)
