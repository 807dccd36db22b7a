"""Corrections of a sensitivity table: always inside the budget, and nothing done is the table's own
policy.
"""

import re

import gymnasium as gym
import numpy as np
import pytest

from haq_env import make_task
from haq_env.agents.methods import agent_env
from haq_env.env import QuantizationEnv
from haq_env.errors import InputError
from haq_env.residual import LAW, ResidualEnv
from haq_env.search.ilp import least_sensitive
from haq_env.search.lagrangian import allocate
from haq_env.search.sensitivity import measure_sensitivity
from haq_env.yardstick import optimum, yardstick

ZERO = np.zeros(1, np.float32)


def episode(env: ResidualEnv, actions: np.ndarray) -> dict:
    env.reset(seed=0)
    for action in actions:
        observation, _, done, _, info = env.step(np.array([action], np.float32))
        assert env.observation_space.contains(observation)
    assert done
    return info


@pytest.fixture(scope="module")
def digits() -> ResidualEnv:
    return gym.make("HAQ-BISMO-Edge-Residual-v0", evaluator="ptq_bn").unwrapped


def test_doing_nothing_gives_what_the_table_recommends(digits):
    steps = len(digits.task.space.steps)
    info = episode(digits, np.zeros(steps))
    table = digits._table
    pairs = table[:, 0, :, None] + table[:, 1, None, :]
    layers = np.arange(len(pairs))

    def harm(bits: np.ndarray) -> float:
        return pairs[layers, bits[:, 0] - 1, bits[:, 1] - 1].sum()

    ours, best = np.array(info["policy"]), least_sensitive(digits.task, pairs)
    assert harm(best) <= harm(ours) * (1 + 1e-9)
    assert harm(ours) <= harm(best) * 1.02  # one price is not exact; two percent is close


def test_each_seed_of_a_search_corrects_a_table_of_its_own():
    task = make_task(evaluator="ptq_bn")
    tables = []
    for seed in (0, 0, 1):
        env = agent_env("residual-ppo", task, seed)
        env.reset()
        tables.append(env._table)
    assert (tables[0] == tables[1]).all()
    assert (tables[0] != tables[2]).any()
    assert (tables[2] == measure_sensitivity(task, "fit", 1).table).all()


def test_that_policy_is_far_better_than_uniform_before_anything_is_learned(digits):
    uniform = digits.task.evaluate(digits.task.uniform()).accuracy
    info = episode(digits, np.zeros(len(digits.task.space.steps)))
    assert info["accuracy"] > uniform + 5


def test_a_correction_moves_bits_to_the_layer_that_it_calls_sensitive(digits):
    steps = digits.task.space.steps
    start = np.array(episode(digits, np.zeros(len(steps)))["policy"])
    moved = 0
    for number in range(0, len(steps), 5):
        for sign in (1, -1):
            actions = np.zeros(len(steps))
            actions[number] = sign
            bits = np.array(episode(digits, actions)["policy"])
            change = sign * (bits[steps[number]] - start[steps[number]])
            assert change >= 0
            moved += change > 0
    assert moved >= 5


@pytest.mark.parametrize("hardware", ["bismo-edge", "bismo-cloud", "bitfusion", "size"])
def test_every_policy_is_inside_the_budget_and_leaves_no_bit_on_the_table(hardware):
    task = make_task(hardware=hardware, budget="w4a4", evaluator="ptq_bn")
    rng = np.random.default_rng(0)
    step = np.array(task.space.steps)
    for _ in range(100):
        table = np.sort(rng.exponential(1.0, (len(task.layers), 2, 8)), axis=2)[..., ::-1]
        bits = allocate(table[:, 0, :, None] + table[:, 1, None, :], task.budget)
        assert task.budget.fits(bits)
        assert task.space.allowed[np.arange(len(bits))[:, None], [0, 1], bits - 1].all()
        for layer, side in step:
            more = bits.copy()
            more[layer, side] += 1
            if more[layer, side] <= task.space.highest[layer, side]:
                assert not task.budget.fits(more)


@pytest.mark.parametrize("instance", range(5))
def test_one_price_comes_within_two_percent_of_the_proven_optimum(instance):
    task = yardstick(instance)
    drop = 100 - task.evaluate(allocate(task.evaluator.pairs(), task.budget)).accuracy
    assert 100 - optimum(task) - 1e-9 <= drop <= (100 - optimum(task)) * 1.02


def test_the_law_costs_nothing_and_a_measured_table_tells_its_charge(digits):
    blind = ResidualEnv(make_task(evaluator="ptq_bn"), prior=LAW)
    assert blind.charge is None  # nothing has been measured, and nothing is known
    blind.reset()
    assert blind.charge == (0.0, 0.0)
    assert blind.task.evaluator.evaluations == 0
    digits.reset()
    assert 0 < digits.charge.evaluations < 100
    assert digits.charge.seconds > 0


def test_a_task_without_a_network_is_searched_from_the_law():
    env = ResidualEnv(yardstick(0))
    assert env.prior == LAW
    info = episode(env, np.zeros(len(env.task.space.steps)))
    assert info["accuracy"] > env.task.evaluate(env.task.uniform()).accuracy + 2


def test_a_table_of_ones_own_is_taken_and_observed_even_where_it_is_all_zero():
    task = yardstick(0)
    for table in (np.zeros((53, 2, 8)), np.ones((53, 2, 8))):
        info = episode(ResidualEnv(task, prior=table), np.zeros(len(task.space.steps)))
        assert task.budget.fits(np.array(info["policy"]))


def test_a_prior_without_a_finite_width_is_no_policy_outside_the_space():
    task = make_task(evaluator="ptq_bn")
    table = np.ones((len(task.layers), 2, 8))
    table[2] = np.inf
    env = ResidualEnv(task, prior=table)
    with pytest.raises(InputError, match="no allowed pair of widths has a finite harm"):
        episode(env, np.zeros(len(task.space.steps)))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"prior": "fisher"}, "unknown prior 'fisher'"),
        ({"reach": 0.0}, "reach must be a positive number"),
        ({"reach": float("nan")}, "reach must be a positive number"),
        ({"actions": "discrete"}, "corrections are continuous"),
        ({"prior": np.ones((3, 2, 8))}, "must be .layers, 2, 8."),
        ({"prior": np.full((53, 2, 8), -1.0)}, "0 or more"),
        ({"prior": "fit"}, "AdditiveEvaluator is an evaluator of its own"),
    ],
)
def test_what_cannot_be_a_prior_is_one_clear_error(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        ResidualEnv(yardstick(0), **settings).reset()


@pytest.mark.parametrize("action", [np.nan, np.inf])
def test_a_correction_must_be_a_number(action, digits):
    digits.reset()
    with pytest.raises(InputError, match="action must be a number"):
        digits.step(np.array([action], np.float32))


def test_its_problem_is_that_of_the_plain_environment(digits):
    plain = QuantizationEnv(evaluator="ptq_bn", budget="w3a2", hardware="bismo-edge")
    assert digits.task.budget.limit == plain.task.budget.limit
    assert digits.task.space.steps == plain.task.space.steps


def test_its_page_lists_what_is_observed_and_what_can_be_set(digits):
    page = ResidualEnv.__doc__
    table = page.split("## Observation Space")[1].split("## ")[0]
    last = max(int(number) for number in re.findall(r"^ *\| (?:\d+-)?(\d+) \|", table, flags=re.M))
    assert last == digits.observation_space.shape[0] - 1
    for name in ("prior", "reach"):
        assert f"| `{name}` |" in page.split("## Arguments")[1]


@pytest.mark.parametrize("unit", [1e-25, 1e-12, 1e12])
def test_the_price_does_not_depend_on_the_unit_of_the_table(unit):
    task = make_task(evaluator="ptq_bn", budget="w4a3", metric="bitops")
    table = 0.25 ** np.arange(1.0, 9.0) * np.linspace(1, 2, 56).reshape(28, 2, 1)
    pairs = table[:, 0, :, None] + table[:, 1, None, :]
    assert np.array_equal(allocate(unit * pairs, task.budget), allocate(pairs, task.budget))


def test_a_table_that_cannot_be_used_says_so_every_time():
    prior = np.ones((28, 2, 8))
    prior[3] = np.inf
    env = ResidualEnv(make_task(evaluator="ptq_bn"), prior=prior)
    for _ in range(2):
        with pytest.raises(InputError):
            env.reset()
