"""Sensitivities: against exact Hessians and gradients, on the bundled network, and in searches."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import cross_entropy

from haq_env.errors import InputError
from haq_env.evaluation import Evaluation
from haq_env.make import make_task
from haq_env.policy import ACTIVATION, WEIGHT
from haq_env.search.charge import Charge
from haq_env.search.greedy import greedy_sensitivity
from haq_env.search.hessian import fisher_traces, hutchinson_traces, top_eigenvalues
from haq_env.search.ilp import ilp_fit, least_sensitive
from haq_env.search.sensitivity import METHODS, Sensitivity, measure_sensitivity


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task():
    return make_task(evaluator="ptq_bn")


@pytest.fixture(scope="module")
def tables(task):
    return {name: measure_sensitivity(task, name, seed=0, images=32) for name in METHODS}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- a small network whose Hessian can be written down -----------------------------------------


@pytest.fixture(scope="module")
def mlp():
    """A trained network of 8-12-4, its data, and its exact Hessian blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
        images = torch.randn(96, 8)
        labels = (images @ torch.randn(8, 4) + torch.randn(96, 4)).argmax(dim=1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        cross_entropy(module(images), labels).backward()
        optimizer.step()
    module = module.double()
    images = images.double()
    weights = [module[0].weight, module[2].weight]
    blocks = []
    for name in ("0.weight", "2.weight"):
        parameters = {n: p.detach() for n, p in module.named_parameters()}

        def loss(weight, name=name, parameters=parameters):
            logits = torch.func.functional_call(module, {**parameters, name: weight}, images)
            return cross_entropy(logits, labels)

        exact = torch.autograd.functional.hessian(loss, parameters[name])
        blocks.append(exact.reshape(parameters[name].numel(), -1).numpy())
    return module, images, labels, weights, blocks


@pytest.mark.parametrize("seed", range(5))
def test_hutchinson_is_within_five_percent_of_the_exact_trace(mlp, seed):
    module, images, labels, weights, blocks = mlp

    def loss():
        return cross_entropy(module(images), labels), weights

    found = hutchinson_traces([loss], generator(seed), probes=200)
    exact = np.array([np.trace(block) for block in blocks])
    assert found.sum() == pytest.approx(exact.sum(), rel=0.05)


def test_hutchinson_over_shares_of_the_data_estimates_the_mean(mlp):
    module, images, labels, weights, blocks = mlp
    shares = [
        lambda x=x, y=y: (cross_entropy(module(x), y), weights)
        for x, y in zip(images.chunk(4), labels.chunk(4), strict=True)
    ]
    found = hutchinson_traces(shares, generator(), probes=200)
    assert found.sum() == pytest.approx(sum(np.trace(block) for block in blocks), rel=0.05)


def test_power_iteration_finds_the_top_eigenvalue(mlp):
    module, images, labels, weights, blocks = mlp
    found = top_eigenvalues(
        lambda: cross_entropy(module(images), labels), weights, generator(), 500, 1e-9
    )
    for value, block in zip(found, blocks, strict=True):
        exact = np.linalg.eigvalsh(block)
        assert value == pytest.approx(exact[np.abs(exact).argmax()], rel=1e-4)


def test_fisher_traces_are_mean_squared_gradients_of_single_samples(mlp):
    module, images, labels, weights, _ = mlp
    found = fisher_traces(
        module,
        [module[0], module[2]],
        weights,
        images.split(1),
        lambda logits, number: cross_entropy(logits, labels[number : number + 1]),
    )
    expected = np.zeros((2, 2))
    for image, label in zip(images, labels, strict=True):
        first = image[None].clone().requires_grad_()
        second = torch.tanh(module[0](first))
        loss = cross_entropy(module[2](second), label[None])
        gradients = torch.autograd.grad(loss, [*weights, first, second])
        squares = [float((g**2).sum()) for g in gradients]
        expected += np.reshape(squares, (2, 2)) / len(images)
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-9)
    assert not module[0]._forward_pre_hooks


def test_a_branch_counts_only_what_comes_through_its_own_layer():
    # x goes through a layer and around it: only the layer's input is quantized
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False).double()

        def forward(self, x):
            return x + self.layer(x).relu_()

    module = Residual()
    with torch.no_grad():
        module.layer.weight.copy_(torch.eye(3))
    image = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    _, activation = fisher_traces(
        module, [module.layer], [module.layer.weight], [image], lambda out, _: out.sum()
    )
    assert activation[0] == pytest.approx(3.0)  # with the way around it would be 12


def test_a_linear_loss_has_no_curvature():
    weight = torch.ones(3, requires_grad=True)
    assert hutchinson_traces([lambda: (weight.sum(), [weight])], generator(), 3)[0] == 0
    assert top_eigenvalues(lambda: weight.sum(), [weight], generator())[0] == 0


# -- the bundled network -----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_tables_are_monotone_and_cover_what_is_allowed(task, tables, name):
    found = tables[name]
    allowed = task.space.allowed
    assert found.table.shape == allowed.shape
    assert np.isfinite(found.table[allowed]).all()
    assert np.isinf(found.table[~allowed]).all()
    assert (found.table >= 0).all()
    free = found.table[1:-1, :, 1:]
    assert (np.diff(free, axis=2) <= 0).all()
    assert free[:, :, 0].any(axis=0).all()
    if name != "hawq_v2":  # an activation's trace may come out negative, which counts as 0
        assert (free[:, :, 0] > 0).mean() > 0.9
    assert found.charge.seconds > 0
    assert found.charge.evaluations > 0


def test_predictions_add_up(task, tables):
    found = tables["fit"]
    policies = task.space.random(np.random.default_rng(0), 5)
    total = found.predict(policies)
    for bits, one in zip(policies, total, strict=True):
        layer = np.arange(len(bits))
        pairs = found.pairs()[layer, bits[:, WEIGHT] - 1, bits[:, ACTIVATION] - 1]
        assert one == pytest.approx(pairs.sum())
    assert found.predict(task.space.highest) <= total.min()


def test_output_kl_is_that_of_one_layer_quantized_alone(task, tables):
    network = task.evaluator.bench.network
    train = task.evaluator.bench.images["train"]
    rows = np.sort(np.random.default_rng(0).permutation(len(train))[:32])
    images = train.batch(torch.from_numpy(rows))
    network.restore()
    network.set_policy(None)
    with torch.no_grad():
        p = network(images).double().log_softmax(1)
        slot = next(m.slot for m in network.modules() if getattr(m, "slot", None)
                    and m.slot.name == task.layers[4].name)  # fmt: skip
        for side in ("w_bits", "a_bits"):
            setattr(slot, side, 2)
            q = network(images).double().log_softmax(1)
            setattr(slot, side, 0)
            kl = float((p.exp() * (p - q)).sum(1).mean())
            which = WEIGHT if side == "w_bits" else ACTIVATION
            assert tables["output_kl"].table[4, which, 1] == pytest.approx(kl, rel=1e-6)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_same_seed_gives_the_same_table_and_leaves_everything_as_it_was(task, tables, name):
    network = task.evaluator.bench.network
    policy = task.space.random(np.random.default_rng(1), 1)[0]
    network.restore()
    network.set_policy(policy)
    network.train()
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    before = task.evaluator.evaluations
    again = measure_sensitivity(task, name, seed=0, images=32)
    np.testing.assert_array_equal(again.table, tables[name].table)
    assert (torch.get_rng_state() == torch_state).all()
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert task.evaluator.evaluations == before
    assert all((network.state_dict()[key] == tensor).all() for key, tensor in state.items())
    assert (network.bits == policy).all()
    assert all(p.grad is None for p in network.parameters())
    assert network.training
    assert not any(m._forward_pre_hooks for m in network.modules())


@pytest.mark.slow
def test_the_order_of_layers_by_their_trace_is_stable_across_probes(task):
    bench = task.evaluator.bench
    bench.network.restore()
    bench.network.set_policy(None)
    bench.network.eval()
    train = bench.images["train"]
    weights = [bench.network.get_parameter(f"module.{name}.weight") for name in task.layers.names]
    shares = [slice(start, start + 16) for start in range(0, 64, 16)]

    def losses():
        for share in shares:
            images, labels = train.batch(share), train.labels[share]
            yield lambda x=images, y=labels: (cross_entropy(bench.network(x), y), weights)

    first, second = (hutchinson_traces(losses(), generator(seed)) for seed in (0, 1))
    assert spearmanr(first, second)[0] > 0.9


def test_what_cannot_be_measured_is_an_error(task):
    with pytest.raises(InputError, match="unknown sensitivity 'fitt'"):
        measure_sensitivity(task, "fitt")
    with pytest.raises(InputError, match="one image or more"):
        measure_sensitivity(task, "fit", images=0)

    class Constant:
        float_accuracy = 100.0

        def evaluate(self, bits):
            return Evaluation(50.0)

    for search in (ilp_fit, greedy_sensitivity):
        with pytest.raises(InputError, match="Constant is an evaluator of its own"):
            search(make_task(evaluator=Constant()), 3, 0)


# -- searches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [ilp_fit, greedy_sensitivity])
def test_searches_measure_the_uniform_policy_the_recommended_one_and_variations(
    task, monkeypatch, search
):
    fixed = measure_sensitivity(task, "fit", images=16)
    monkeypatch.setattr("haq_env.search.sensitivity.measure_sensitivity", lambda *_, **__: fixed)
    history = search(task, 6, seed=0)
    assert len(history) == 6
    assert (history[0].bits == task.uniform()).all()
    assert all(task.budget.fits(trial.bits) for trial in history)
    assert len({trial.bits.tobytes() for trial in history}) == 6
    assert history.charge == fixed.charge
    repeated = search(task, 6, seed=0)
    assert [t.bits.tobytes() for t in repeated] == [t.bits.tobytes() for t in history]
    with pytest.raises(InputError, match="1 or more"):
        search(task, 0, seed=0)
    assert search(task, 1, seed=0).charge is None


def test_the_recommended_policy_is_the_least_sensitive_one_known(task, tables):
    for found in tables.values():
        best = found.predict(least_sensitive(task, found.pairs()))
        policies = task.project(task.space.random(np.random.default_rng(0), 200))
        assert best <= found.predict(policies).min()
        assert best <= found.predict(task.uniform())


def test_weights_only_tables_leave_activations_in_float():
    task = make_task(
        evaluator="ptq_bn", quantizer="kmeans", hardware="size", budget=0.4, bits=(2, 8)
    )
    for name in ("output_kl", "fit"):
        found = measure_sensitivity(task, name, images=16)
        assert (found.table[:, ACTIVATION, 7] == 0).all()
        assert (found.table[1:-1, WEIGHT, 1] > 0).all()


def test_a_total_is_the_sum_over_layers_and_sides():
    table = np.full((2, 2, 8), 0.5)
    found = Sensitivity("fit", table, Charge(0.0, 0.0))
    assert found.predict(np.full((3, 2, 2), 4)).tolist() == [2.0, 2.0, 2.0]
