"""The integer program is exact; the greedy one is not, but never outside the limit."""

import ctypes
import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haq_env.errors import InputError
from haq_env.make import make_task
from haq_env.search.greedy import greedy, step_down
from haq_env.search.ilp import ilp_law, solve
from haq_env.yardstick import yardstick

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = Path(os.environ.get("HAQ_ENV_SHARED", ROOT.parent / "shared")) / "data" / "hawq_v3"


def instance(seed, layers, share=0.5, widths=8):
    """Random values and costs [L, 8, 8] with some pairs shut, and a limit that can be met."""
    rng = np.random.default_rng(seed)
    value = rng.lognormal(sigma=2, size=(layers, 8, 8))
    cost = rng.integers(0, 40, size=(layers, 8, 8)).astype(float)
    allowed = np.zeros((layers, 8, 8), dtype=bool)
    allowed[:, :widths, :widths] = rng.random((layers, widths, widths)) < 0.8
    allowed[:, 0, 0] = True
    low = np.where(allowed, cost, np.inf).min(axis=(1, 2)).sum()
    high = np.where(allowed, cost, -np.inf).max(axis=(1, 2)).sum()
    return value, cost, allowed, float(np.floor(low + share * (high - low)))


def by_dynamic_program(value, cost, allowed, limit):
    """Least total value for integer costs, one layer after the other."""
    best = np.full(int(limit) + 1, np.inf)
    best[0] = 0.0
    for v, c, ok in zip(value, cost, allowed, strict=True):
        after = np.full_like(best, np.inf)
        for one_value, one_cost in zip(v[ok], c[ok].astype(int), strict=True):
            if one_cost < len(best):
                shifted = best[: len(best) - one_cost] + one_value
                after[one_cost:] = np.minimum(after[one_cost:], shifted)
        best = after
    return best.min()


def total(grid, bits):
    return grid[np.arange(len(bits)), bits[:, 0] - 1, bits[:, 1] - 1].sum()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(0, 1))
def test_the_solution_is_the_one_of_a_dynamic_program(seed, layers, share):
    value, cost, allowed, limit = instance(seed, layers, share)
    found = solve(value, cost, allowed, limit)
    layer = np.arange(layers)
    assert allowed[layer, found.bits[:, 0] - 1, found.bits[:, 1] - 1].all()
    assert total(cost, found.bits) <= limit
    assert total(value, found.bits) == pytest.approx(found.objective, rel=1e-12)
    best = by_dynamic_program(value, cost, allowed, limit)
    assert found.objective == pytest.approx(best, rel=1e-9)
    assert 0 <= found.gap <= 1e-9
    assert found.bound <= found.objective


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_tied_layers_get_the_best_bits_that_they_can_share(seed):
    value, cost, _, _ = instance(seed, 5)
    allowed = np.zeros((5, 8, 8), dtype=bool)
    allowed[:, [1, 3, 5], [1, 3, 5]] = True
    limit = cost[:, 3, 3].sum()
    ties = [(0, 2), (2, 4)]
    found = solve(value, cost, allowed, limit, ties)
    widths = found.bits[:, 0]
    assert widths[0] == widths[2] == widths[4]
    best = np.inf
    for a, b, c in itertools.product((2, 4, 6), repeat=3):
        policy = np.array([[w, w] for w in (a, b, a, c, a)])
        if total(cost, policy) <= limit:
            best = min(best, total(value, policy))
    assert found.objective == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_units_do_not_matter(unit):
    value, cost, allowed, limit = instance(3, 12)
    expected = solve(value, cost, allowed, limit)
    found = solve(value * unit, cost / unit, allowed, limit / unit)
    assert (found.bits == expected.bits).all()
    assert found.gap <= 1e-9


def large_instance(seed):
    """Values that fall with the bits as those of networks do, for 53 layers, and a 4-bit limit."""
    rng = np.random.default_rng(seed)
    bits = np.arange(1, 9)
    side = rng.lognormal(sigma=1.5, size=(53, 2, 1)) * 4.0**-bits
    value = side[:, 0, :, None] + side[:, 1, None, :]
    cost = rng.lognormal(size=(53, 1, 1)) * np.outer(bits, bits) * rng.uniform(0.9, 1, (53, 8, 8))
    return value, cost, np.ones((53, 8, 8), dtype=bool), cost[:, 3, 3].sum()


@pytest.mark.parametrize("seed", range(3))
def test_53_layers_of_64_pairs_are_proven_in_under_three_seconds(seed):
    value, cost, allowed, limit = large_instance(seed)
    found = solve(value, cost, allowed, limit)
    assert found.seconds < 3
    assert found.gap <= 1e-9
    assert total(cost, found.bits) <= limit * (1 + 1e-12)
    ratio = step_down(value, cost, allowed, limit, np.full((53, 2), 8))
    assert found.objective <= total(value, ratio)


def test_the_solver_prints_nothing_between_the_lines_of_a_command(capfd):
    print("before")
    solve(*large_instance(28))  # HiGHS prints six lines of debugging here
    ctypes.CDLL(None).fflush(None)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_the_solver_needs_no_standard_output(monkeypatch):
    def closed(_):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    expected = solve(*large_instance(28))
    monkeypatch.setattr(os, "dup", closed)
    assert (solve(*large_instance(28)).bits == expected.bits).all()


def test_a_limit_that_the_least_sensitive_policy_keeps_gives_that_policy():
    width = np.arange(1.0, 9)
    for seed in (*range(20), 212, 277, 286):  # in the last ones rounding cuts the solution off
        size = np.random.default_rng(seed).uniform(size=26)[:, None, None]
        cost = size * width[:, None] * width
        sensitivity = size * (4.0 ** -width[:, None] + 4.0**-width)
        found = solve(sensitivity, cost, np.ones_like(cost, dtype=bool), cost[:, -1, -1].sum())
        assert (found.bits == 8).all()


def test_a_limit_below_the_cheapest_policy_is_an_error_that_says_so():
    value, cost, allowed, _ = instance(0, 4)
    least = np.where(allowed, cost, np.inf).min(axis=(1, 2)).sum()
    assert total(cost, solve(value, cost, allowed, least).bits) == least
    with pytest.raises(InputError, match="no policy fits the limit"):
        solve(value, cost, allowed, least - 1)


def test_wrong_shapes_ties_and_shut_layers_are_errors():
    value, cost, allowed, limit = instance(0, 4)
    with pytest.raises(InputError, match="costs must have the shape"):
        solve(value, cost[:3], allowed, limit)
    with pytest.raises(InputError, match="tied layers must be 0 to 3, not 4"):
        solve(value, cost, allowed, limit, ties=[(1, 4)])
    shut = np.zeros_like(allowed)
    shut[:, 1, 1] = True
    shut[2, 1, 1], shut[2, 2, 2] = False, True
    with pytest.raises(InputError, match=r"layers \[1, 2\]: no pair of widths"):
        solve(value, cost, shut, 1e9, ties=[(1, 2)])


@pytest.mark.skipif(
    not (PUBLISHED / "resnet18.json").exists(),
    reason="the published inputs of HAWQ-V3 are not there (set HAQ_ENV_SHARED)",
)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("metric", ["modelsize", "bops", "latency"])
@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_hawq_v3_is_solved_and_the_published_configurations_come_out(network, metric, share):
    data = json.loads((PUBLISHED / f"{network}.json").read_text("utf-8"))
    trace, coarse, fine, size, bops = (
        np.array(data[key])
        for key in ("hutchinson_trace", "perturbation_4bit", "perturbation_8bit", "parameters",
                    "bops")
    )  # fmt: skip
    four, eight = {
        "modelsize": (0.5 * size, size),
        "bops": (bops / 64, bops / 16),
        "latency": (np.array(data["latency_int4"]), np.array(data["latency_int8"])),
    }[metric]
    shape = (data["layers"], 8, 8)
    value, cost, allowed = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
    allowed[:, [3, 7], [3, 7]] = True
    value[:, 3, 3] = trace * (coarse - fine)  # what a layer loses that is not at 8 bits
    cost[:, 3, 3], cost[:, 7, 7] = four, eight
    limit = four.sum() + share * (eight.sum() - four.sum())
    found = solve(value, cost, allowed, limit, data["tied_layers"])
    assert found.gap <= 1e-9
    assert total(cost, found.bits) <= limit * (1 + 1e-12)
    if "published" in data:  # ResNet-50's inputs come without its configurations
        assert found.bits[:, 0].tolist() == data["published"][f"{metric}_{share}"]


# -- greedy ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.05, 1))
def test_stepping_down_ends_inside_the_limit_and_leaves_no_gain_that_fits(seed, share):
    rng = np.random.default_rng(seed)
    steps = rng.exponential(size=(2, 6, 8, 8))
    cost = np.cumsum(np.cumsum(steps[0], axis=1), axis=2)
    value = np.cumsum(np.cumsum(steps[1][:, ::-1, ::-1], axis=1), axis=2)[:, ::-1, ::-1]
    allowed = np.ones((6, 8, 8), dtype=bool)
    limit = cost[:, 0, 0].sum() + share * (cost[:, 7, 7].sum() - cost[:, 0, 0].sum())
    bits = step_down(value, cost, allowed, limit, np.full((6, 2), 8))
    assert total(cost, bits) <= limit * (1 + 1e-12)
    assert total(value, bits) >= solve(value, cost, allowed, limit).objective * (1 - 1e-9)
    slack = limit - total(cost, bits)
    for layer, (w, a) in enumerate(bits - 1):
        fits = cost[layer] - cost[layer, w, a] <= slack
        assert not (fits & (value[layer] < value[layer, w, a])).any()


def test_stepping_down_where_nothing_fits_is_an_error():
    value, cost, allowed = np.ones((2, 8, 8)), np.ones((2, 8, 8)), np.ones((2, 8, 8), dtype=bool)
    with pytest.raises(InputError, match="no policy was found inside the limit"):
        step_down(value, cost, allowed, 1.0, np.full((2, 2), 8))


class Additive:
    """A cheap evaluator: every layer loses accuracy by its importance and its bits."""

    float_accuracy = 100.0

    def __init__(self, seed):
        self.importance = np.random.default_rng(seed).lognormal(sigma=1.5, size=(28, 2))

    def evaluate(self, bits):
        from haq_env.evaluation import Evaluation

        return Evaluation(float(100 - (self.importance * 2.0 ** -bits.astype(float)).sum()))


@pytest.mark.parametrize("evaluations", [1, 2, 3, 30, 120])
def test_greedy_by_accuracy_spends_what_it_is_given_inside_the_budget(evaluations):
    task = make_task(evaluator=Additive(0), budget=0.4)
    history = greedy(task, evaluations, seed=0)
    assert len(history) == evaluations
    assert all(task.budget.fits(trial.bits) for trial in history)
    assert (history[0].bits == task.uniform()).all()
    assert list(greedy(task, evaluations, seed=0)) == list(history)


def test_greedy_by_accuracy_improves_on_the_uniform_policy():
    for seed in range(3):
        history = greedy(make_task(evaluator=Additive(seed), budget=0.4), 120, seed)
        assert history.best.accuracy > history[0].accuracy + 1


# -- the law ------------------------------------------------------------------------------------


def test_the_law_needs_no_network_and_charges_nothing():
    task = yardstick(0)
    history = ilp_law(task, 4, seed=0)
    assert history.charge == (0.0, 0.0)
    assert np.array_equal(history[0].bits, task.uniform())
    harm = 0.25 ** np.arange(1.0, 9.0)
    pairs = np.broadcast_to(harm[:, None] + harm, (len(task.layers), 8, 8))
    grid = task.budget.table.grid(task.budget.metric)
    best = solve(pairs, grid, task.space.pairs(), task.budget.for_layers)
    chosen = history[1].bits
    assert harm[chosen - 1].sum() == pytest.approx(best.objective)
    assert len({trial.bits.tobytes() for trial in history}) == 4  # the others are variations
    assert all(task.budget.fits(trial.bits) for trial in history)


def test_the_law_alone_is_far_above_uniform_bits_on_the_bundled_task():
    uniform, found = ilp_law(make_task(evaluator="ptq_bn"), 2, seed=0)
    assert found.accuracy > uniform.accuracy + 10
