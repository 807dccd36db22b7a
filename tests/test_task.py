"""What a task promises: it refuses what makes no sense at once, and ends what it has started."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import haq_env  # noqa: F401  # registers the environments
from haq_env import InputError, Policy, QuantizationEnv, ResidualEnv, make_task, search_policy
from haq_env.evaluation import Evaluation
from haq_env.report import terminal


class Own:
    """An evaluator of the user's own."""

    float_accuracy = 90.0

    def __init__(self, answer=None):
        self.answer = Evaluation(50.0) if answer is None else answer
        self.closed = 0

    def evaluate(self, bits):
        return self.answer

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"reuse": float("nan")}, "reuse must be a number of MB"),
        ({"reuse": float("inf")}, "reuse must be a number of MB"),
        ({"reuse": "5"}, "reuse must be a number of MB"),
        ({"reuse": -1}, "reuse must be a number of MB"),
        ({"early_stopping": "0.1"}, "early_stopping must be a number or None"),
        ({"early_stopping": 0.7}, "delta must be in"),
        ({"quantizer": ["linear"]}, "unknown quantizer"),
        ({"clip": None}, "unknown clip rule None"),
        ({"metric": 3}, "unknown metric 3"),
        ({"device": None}, "device must be a name"),
        ({"layers": [1, 2]}, "layers must be a LayerTable"),
        ({"seed": "0"}, "seed must be an integer"),
        ({"seed": "0", "evaluator": Own()}, "seed must be an integer"),
        ({"cache": 3}, "cache must be the path of a file, not 3"),
        ({"device": "meta"}, "torch device 'meta' cannot be used"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_one_clear_error(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        make_task(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"workers": 2}, {"device": "cuda:7"}, {"reuse": 0}, {"inference": "int8"}, {"cache": "a.db"}],
)
def test_what_an_evaluator_of_ones_own_would_not_heed_is_refused(settings):
    with pytest.raises(InputError, match=rf"{next(iter(settings))}: an evaluator of your own"):
        make_task(evaluator=Own(), **settings)


def test_an_evaluator_that_answers_with_a_number_is_told_what_to_return():
    env = QuantizationEnv(make_task(evaluator=Own(answer=50.0)))
    env.reset()
    for _ in env.task.space.steps[1:]:
        env.step(np.zeros(1, np.float32))
    with pytest.raises(InputError, match=r"Own\.evaluate must return a haq_env\.Evaluation"):
        env.step(np.zeros(1, np.float32))


def test_what_needs_a_network_says_so_where_there_is_none():
    task = make_task(evaluator=Own())
    assert not task.is_trained
    with pytest.raises(InputError, match="Own is an evaluator of its own"):
        task.trained()
    assert make_task().is_trained


def test_closing_an_environment_ends_what_its_own_task_has_started():
    own = Own()
    task = make_task(evaluator=own)
    QuantizationEnv(task).close()
    assert own.closed == 0  # somebody else's task may be in use
    gym.make("HAQ-BISMO-Edge-v0", evaluator=own).close()
    assert own.closed == 1
    make_task().close()  # nothing has been started


def test_a_prior_of_the_wrong_shape_is_refused_before_anything_is_measured():
    with pytest.raises(InputError, match=r"must be .layers, 2, 8."):
        ResidualEnv(make_task(), prior=np.ones((3, 2, 8)))
    with pytest.raises(InputError, match="a prior must be a name or numbers"):
        ResidualEnv(make_task(), prior=["fit"])


def test_policies_are_equal_by_what_they_say_and_tasks_by_identity():
    bits, names = [[8, 8], [4, 2]], ("a", "b")
    assert Policy(bits, names, {"seed": 0}) == Policy(bits, names, {"seed": 0})
    assert Policy(bits, names) != Policy([[8, 8], [4, 3]], names)
    assert Policy(bits, names) != Policy(bits, ("a", "c"))
    assert Policy(bits, names) != "policy"
    task, other = make_task(), make_task()
    assert task == task  # arrays in it have no truth value
    assert task != other
    assert len({task, other, task.costs, task.budget, task.space}) == 5


def test_output_without_a_file_behind_it_hides_no_error(monkeypatch):
    import io

    monkeypatch.setattr("sys.stdout", io.StringIO())
    terminal.silence()
    monkeypatch.setattr("sys.stdout", None)
    terminal.silence()


def test_a_policy_from_a_file_is_taken_where_bits_are(tmp_path):
    class Mean(Own):
        def evaluate(self, bits):
            return Evaluation(float(bits.mean()))

    task = make_task(evaluator=Mean())
    task.policy(task.uniform()).save(tmp_path / "policy.json")
    policy = Policy.load(tmp_path / "policy.json")
    assert task.evaluate(policy) == task.evaluate(policy.bits)
    assert task.cost(policy) == task.cost(policy.bits)
    assert np.array_equal(task.project(policy), policy.bits)
    other = Policy(policy.bits, tuple(f"{name}x" for name in policy.names))
    taking = (task.evaluate, task.cost, task.all_costs, task.project, task.policy)
    for take in (*taking, lambda policy: task.evaluate_batch([policy])):
        take(policy)
        with pytest.raises(InputError, match="is for other layers than 'mobilenet_v1'"):
            take(other)
    trained = make_task(evaluator="ptq_bn")
    with pytest.raises(InputError, match="is for other layers than 'mobilenet_v1'"):
        trained.evaluate_batch([other])
    with pytest.raises(InputError, match="must be one policy"):
        task.cost(np.stack([policy.bits, policy.bits]))
    with pytest.raises(InputError, match="must have the shape"):
        task.evaluate(policy.bits[1:])


def test_an_evaluator_that_writes_into_its_argument_changes_no_policy():
    class Vandal(Own):
        def evaluate(self, bits):
            bits[:] = 1
            return self.answer

    task = make_task(evaluator=Vandal())
    for trial in search_policy(task, "evolution", 6):
        assert np.array_equal(task.space.clip(trial.bits), trial.bits)


@pytest.mark.parametrize("accuracy", [torch.tensor(50.0), "50", None, float("nan"), 500.0])
def test_an_accuracy_that_is_no_number_never_gets_into_a_log(accuracy, tmp_path):
    task = make_task(evaluator=Own(Evaluation(accuracy)))
    with pytest.raises(InputError, match="Own: an accuracy must be a percentage, 0 to 100, not"):
        search_policy(task, "random", 3, folder=tmp_path)
    assert not (tmp_path / "episodes.csv").exists()
    own = Own()
    own.float_accuracy = accuracy
    with pytest.raises(InputError, match="Own: float_accuracy must be a percentage"):
        _ = make_task(evaluator=own).float_accuracy
