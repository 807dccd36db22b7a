"""Projection and masks never leave the budget."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq_env.budget import Budget
from haq_env.cost import CostTable
from haq_env.errors import InputError
from haq_env.layers import Layer, LayerTable
from haq_env.policy import ACTIVATION, WEIGHT
from haq_env.space import BitSpace


def network(count: int = 6) -> LayerTable:
    layers = [
        Layer(f"layer{i}", "conv", 4 + i, 5 + i, (3, 3), (1, 1), 1, (8, 8), (8, 8), i % 2 == 1)
        for i in range(count)
    ]
    return LayerTable("toy", tuple(layers), (4, 8, 8))


def table(layers: LayerTable, seed: int, *, monotone: bool = True) -> CostTable:
    rng = np.random.default_rng(seed)
    grid = rng.uniform(0.1, 1.0, size=(len(layers), 8, 8))
    if monotone:
        grid = grid.cumsum(axis=1).cumsum(axis=2)
    return CostTable(layers.names, {"latency": grid}, "toy")


def random_case(seed: int, share: float, low: int, *, monotone: bool, fill_up: bool = True):
    layers = network()
    space = BitSpace.of(layers, (low, 8))
    costs = table(layers, seed, monotone=monotone)
    bottom = float(np.where(space.pairs(), costs.grid("latency"), np.inf).min(axis=(1, 2)).sum())
    top = float(costs.cost(np.full((len(layers), 2), 8), "latency"))
    ratio = min(1.0, max((bottom + share * (top - bottom)) / top, 1e-6))
    return Budget.of(costs, space, ratio, fill_up=fill_up)


cases = {
    "seed": st.integers(0, 10_000),
    "share": st.floats(0, 1),
    "low": st.integers(1, 5),
    "monotone": st.booleans(),
}


@given(**cases, fill_up=st.booleans())
def test_a_projected_policy_fits_the_budget_and_the_space(seed, share, low, monotone, fill_up):
    budget = random_case(seed, share, low, monotone=monotone, fill_up=fill_up)
    policies = budget.space.random(np.random.default_rng(seed), 20)
    projected = budget.project(policies)
    assert budget.fits(projected).all()
    assert (projected >= budget.space.lowest).all()
    assert (projected <= budget.space.highest).all()


@given(**cases)
def test_projecting_twice_changes_nothing(seed, share, low, monotone):
    budget = random_case(seed, share, low, monotone=monotone)
    projected = budget.project(budget.space.random(np.random.default_rng(seed), 20))
    assert (budget.project(projected) == projected).all()


@given(**cases)
def test_a_batch_is_projected_as_each_policy_alone(seed, share, low, monotone):
    budget = random_case(seed, share, low, monotone=monotone)
    policies = budget.space.random(np.random.default_rng(seed), 5)
    together = budget.project(policies)
    for policy, projected in zip(policies, together, strict=True):
        assert (budget.project(policy) == projected).all()


@given(**cases)
def test_after_the_fill_up_no_single_bit_more_fits(seed, share, low, monotone):
    budget = random_case(seed, share, low, monotone=monotone)
    policy = budget.project(budget.space.random(np.random.default_rng(seed), 1)[0])
    for layer, side in budget.space.steps:
        if policy[layer, side] < budget.space.highest[layer, side]:
            more = policy.copy()
            more[layer, side] += 1
            assert not budget.fits(more)


@given(**cases)
def test_without_fill_up_bits_are_never_added(seed, share, low, monotone):
    budget = random_case(seed, share, low, monotone=True, fill_up=False)
    policies = budget.space.random(np.random.default_rng(seed), 20)
    assert (budget.project(policies) <= policies).all()


def test_the_order_is_haqs_last_layer_first_and_activations_before_weights():
    layers = network(4)
    costs = CostTable(layers.names, {"latency": additive(4)}, "toy")
    space = BitSpace.of(layers, (2, 8))
    eight = np.full((4, 2), 8)
    # Every bit costs 1, so a budget k below the top takes exactly k bits away.
    for taken, expected in {
        1: {(2, ACTIVATION): 7},
        2: {(2, ACTIVATION): 7, (2, WEIGHT): 7},
        3: {(2, ACTIVATION): 7, (2, WEIGHT): 7, (1, ACTIVATION): 7},
        5: {(2, ACTIVATION): 6, (2, WEIGHT): 7, (1, ACTIVATION): 7, (1, WEIGHT): 7},
    }.items():
        budget = Budget.of(costs, space, (64 - taken) / 64, fill_up=False)
        policy = eight.copy()
        for place, bits in expected.items():
            policy[place] = bits
        assert (budget.project(eight) == policy).all(), taken


def additive(count: int) -> np.ndarray:
    bits = np.arange(1, 9)
    return np.tile((bits[:, None] + bits[None, :]).astype(float), (count, 1, 1))


def test_a_named_budget_is_the_cost_of_that_uniform_policy():
    layers = network()
    costs, space = table(layers, 0), BitSpace.of(layers, (2, 8))
    budget = Budget.of(costs, space, "w4a3")
    assert budget.limit == costs.cost(space.uniform(4, 3), "latency")
    assert budget.fits(space.uniform(4, 3))


def test_the_uniform_policy_of_a_named_budget_is_that_policy():
    layers = network()
    costs, space = table(layers, 0), BitSpace.of(layers, (2, 8))
    assert (Budget.of(costs, space, "w4a4").uniform() == space.uniform(4, 4)).all()
    assert (Budget.of(costs, space, "w4a3").uniform() == space.uniform(4, 3)).all()


@given(**cases)
def test_a_walk_inside_the_masks_needs_no_projection(seed, share, low, monotone):
    budget = random_case(seed, share, low, monotone=monotone)
    rng = np.random.default_rng(seed)
    bits = budget.space.highest.copy()
    for number, (layer, side) in enumerate(budget.space.steps):
        mask = budget.reachable(bits, number)
        assert mask.any()
        bits[layer, side] = rng.choice(np.flatnonzero(mask)) + 1
    assert budget.fits(bits)


@given(**cases)
def test_a_masked_width_really_has_no_completion(seed, share, low, monotone):
    budget = random_case(seed, share, low, monotone=monotone)
    layer, side = budget.space.steps[0]
    mask = budget.reachable(budget.space.highest, 0)
    pairs = budget.space.pairs()
    grid = np.where(pairs, budget.table.grid("latency"), np.inf)
    rest = grid.min(axis=(1, 2)).sum() - grid[layer].min()
    for bits in range(1, 9):
        own = grid[layer, bits - 1] if side == WEIGHT else grid[layer, :, bits - 1]
        assert mask[bits - 1] == (own.min() + rest <= budget.limit * (1 + 1e-9))


def test_an_unreachable_budget_says_what_the_smallest_is():
    layers = network()
    costs, space = table(layers, 0), BitSpace.of(layers, (3, 8))
    with pytest.raises(InputError, match=r"at least (0\.\d+)") as caught:
        Budget.of(costs, space, 0.01)
    smallest = float(re.search(r"at least (0\.\d+)", str(caught.value))[1])
    assert Budget.of(costs, space, smallest).fits(space.lowest)
    assert "'w4a4' costs can be reached" in str(caught.value)
    assert Budget.of(costs, space, "w4a4").fits(space.lowest)


@pytest.mark.parametrize("budget", [0.5, 1.0, "w4a4"])
def test_a_cost_of_nothing_cannot_be_limited(budget):
    """A column of zeros in a table of measured costs, for example."""
    layers = network()
    costs = CostTable(layers.names, {"energy": np.zeros((len(layers), 8, 8))}, "my board")
    with pytest.raises(InputError, match=r"energy cannot be limited.*'my board'"):
        Budget.of(costs, BitSpace.of(layers), budget, "energy")


@pytest.mark.parametrize("budget", [0, -0.5, 1.01, float("nan"), "w9a4", "w0a1", "half", None])
def test_what_is_no_budget_is_refused(budget):
    layers = network()
    with pytest.raises(InputError, match="budget must be a share in"):
        Budget.of(table(layers, 0), BitSpace.of(layers), budget)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ((0, 8), "within 1 to 8"),
        ((2, 9), "within 1 to 8"),
        ((6, 3), "above the largest"),
        ((8, 8), "nothing to search"),
        ("28x", "must be"),
    ],
)
def test_an_impossible_range_of_bits_is_refused(bits, message):
    with pytest.raises(InputError, match=message):
        BitSpace.of(network(), bits)


def test_one_bit_is_never_offered_for_signed_activations():
    layers = network()
    space = BitSpace.of(layers, (1, 8))
    for index, layer in enumerate(layers):
        if 0 < index < len(layers) - 1:
            assert space.allowed[index, ACTIVATION, 0] == (not layer.signed_input)
            assert space.allowed[index, WEIGHT, 0]


def test_only_the_first_and_the_last_layer_are_pinned():
    space = BitSpace.of(network(), (2, 6))
    decided = {layer for layer, _ in space.steps}
    assert decided == {1, 2, 3, 4}
    assert (space.uniform(3, 3)[[0, -1]] == 8).all()


@pytest.mark.parametrize(("bits", "name"), [((2, 4), "w2a8"), ((2, 6), "w8a4"), ((2, 8), "w4a3")])
def test_uniform_is_the_largest_that_fits_where_its_name_cannot_be_chosen(bits, name):
    layers = network()
    space = BitSpace.of(layers, bits)
    budget = Budget.of(table(layers, 0), space, name)
    low, high = bits
    fitting = [
        (min(w, a), w + a, w, a)
        for w in range(low, high + 1)
        for a in range(low, high + 1)
        if budget.fits(space.uniform(w, a))
    ]
    wanted = max(fitting)[2:] if high < 8 else (4, 3)
    assert np.array_equal(budget.uniform(), space.uniform(*wanted))
