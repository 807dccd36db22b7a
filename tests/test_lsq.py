"""Learned step sizes: the paper's equations, and how an evaluation trains and restores them."""

from __future__ import annotations

import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import haq_env  # noqa: F401  registers the environments
from haq_env import make_task
from haq_env.errors import InputError
from haq_env.evaluation.finetune import finetune
from haq_env.evaluation.recipe import Recipe
from haq_env.layers import Layer, LayerTable
from haq_env.quantization import QUANTIZERS, widths
from haq_env.quantization.calibration import clip_table
from haq_env.quantization.linear import LinearQuantizer
from haq_env.quantization.lsq import Codes, LSQQuantizer, gradient_scale, quantize
from haq_env.quantization.network import QuantizedNetwork
from haq_env.quantization.scheme import Settings, widths_of
from haq_env.search.sensitivity import _float_network

BRIEF = Recipe(steps=3)
TABLE = LayerTable(
    "two",
    (
        Layer("0", "conv", 2, 6, kernel=(3, 3), in_size=(6, 6), out_size=(4, 4), signed_input=True),
        Layer("3", "linear", 96, 4),
    ),
    (2, 6, 6),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    return make_task(quantizer="lsq", evaluator=BRIEF, budget="w3a2")


def numbers(*shape: int, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two(**options) -> QuantizedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    options = {"quantizer": "lsq", "calibration_images": numbers(16, 2, 6, 6), **options}
    return QuantizedNetwork(net, TABLE, **options)


def steps_of(net: QuantizedNetwork) -> dict[str, Tensor]:
    return {name: step.detach().clone() for name, step in net.learned.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def train_once(net: QuantizedNetwork, rate=0.1) -> None:
    net.train()
    net(numbers(8, 2, 6, 6, seed=5)).square().mean().backward()
    torch.optim.SGD(net.parameters(), rate).step()
    net.after_step()
    net.zero_grad()
    net.eval()


# -- the equations -----------------------------------------------------------------------------


def through(value: Tensor, instead: Tensor) -> Tensor:
    """One value, and another's gradient: the straight-through estimator."""
    return instead + (value - instead).detach()


def by_autograd(v: Tensor, s: Tensor, low: int, high: int, scale: float) -> Tensor:
    """Equations 1 to 3 and 5 in float64, with nothing but the rounding passed straight through."""
    v, s = v.double(), s.double()
    s = through(s, s * scale)
    clipped = torch.where(v / s <= low, float(low), torch.where(v / s >= high, float(high), v / s))
    return through(clipped.round(), clipped) * s


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_values_and_gradients_are_those_of_the_equations(bits, signed):
    if signed and bits == 1:
        return
    codes = Codes.of(bits, signed)
    v = numbers(64, 5, 3)
    v[0, 0] = torch.tensor([0.0, 10.0, -10.0])
    s, weight = torch.tensor(1.9 / codes.high), numbers(64, 5, 3, seed=1)
    scale = gradient_scale(v.numel(), codes)
    ours, expected = ([each.clone().requires_grad_() for each in (v, s)] for _ in range(2))
    out = quantize(*ours, codes, scale)
    known = by_autograd(*expected, *codes, scale)
    torch.testing.assert_close(out.double(), known)
    (out * weight).sum().backward()
    (known * weight.double()).sum().backward()
    for found, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(found.grad, want.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(quantize(v, s, codes, scale), out)
    assert len(out.detach().unique()) <= 2**bits


def test_the_gradients_of_a_few_numbers_are_those_computed_by_hand():
    v = torch.tensor([-3, -0.6, 0.2, 0.74, 0.76, 1.4, 9], requires_grad=True)
    s = torch.tensor(0.5, requires_grad=True)
    codes = Codes.of(3, signed=True)
    assert codes == (-4, 3)
    out = quantize(v, s, codes, 1.0)
    assert out.tolist() == [-2, -0.5, 0, 0.5, 1, 1.5, 1.5]
    by_step = [-4, 0.2, -0.4, -0.48, 0.48, 0.2, 3]
    for at, expected in enumerate(by_step):
        (found,) = torch.autograd.grad(out[at], s, retain_graph=True)
        assert float(found) == pytest.approx(expected, abs=1e-6)
    out.sum().backward()
    assert v.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_at_the_limits_the_values_have_no_gradient_and_the_step_has_the_limit():
    v = torch.tensor([-2.0, 1.5, 0.0], requires_grad=True)
    s = torch.tensor(0.5, requires_grad=True)
    quantize(v, s, Codes.of(3, signed=True), 1.0)[:2].sum().backward()
    assert v.grad.tolist() == [0, 0, 0]
    assert float(s.grad) == -4 + 3


@pytest.mark.parametrize("start", [0.0, -0.5])
def test_a_step_that_an_optimizer_carries_across_zero_stays_finite_and_comes_back(start):
    v = numbers(50)
    s = torch.tensor(start, requires_grad=True)
    codes = Codes.of(4, signed=True)
    out = quantize(v, s, codes, 1.0)
    assert torch.equal(out, quantize(v, -s, codes, 1.0))
    (out - v).square().sum().backward()
    assert s.grad.isfinite()


def test_the_scale_counts_weights_or_the_features_of_one_image():
    net = two()
    net.set_policy([[3, 4], [2, 3]])
    quantizer = net.quantized_layers[1].slot.quantizer
    inputs = numbers(5, 96).abs()
    for values, table, at, n, high, run in (
        (net.quantized_layers[1].weight.detach(), quantizer.weight_step, 0, 384, 1, "weight"),
        (inputs, quantizer.activation_step, 2, 96, 7, "activation"),
    ):
        table.grad = None
        bits = {"weight": 2, "activation": 3}[run]
        getattr(quantizer, run)(values, bits).sum().backward()
        step = table[at].detach().requires_grad_()
        low = -2 if run == "weight" else 0
        by_autograd(values, step, low, high, 1.0).sum().backward()
        expected = torch.zeros(len(table))
        expected[at] = step.grad / math.sqrt(n * high)
        torch.testing.assert_close(table.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_steps_start_where_the_clip_rule_says_and_by_the_papers_rule_if_asked(bits):
    weight, inputs = numbers(6, 2, 3, 3), numbers(4000).relu()
    layer = Layer("x", "conv", 2, 6, kernel=(3, 3), in_size=(6, 6), out_size=(4, 4))
    paper = LSQQuantizer(layer, weight, inputs, Settings("lsq"))
    high = 2 ** (bits - 1) - 1
    expected = 2 * float(weight.abs().mean()) / math.sqrt(high)
    assert paper.weight_step[bits - 2].item() == pytest.approx(expected, rel=1e-5)
    expected = 2 * float(inputs.mean()) / math.sqrt(2**bits - 1)
    assert paper.activation_step[bits - 1].item() == pytest.approx(expected, rel=1e-5)
    usual = LSQQuantizer(layer, weight, inputs, Settings())
    clip = clip_table(weight.numpy(), signed=True).clip[bits - 1]
    assert usual.weight_step[bits - 2].item() == pytest.approx(clip / high, rel=1e-5)
    assert usual.activation_mse[bits - 1] < paper.activation_mse[bits - 1]


def test_errors_are_those_of_the_quantized_numbers_and_infinite_where_there_is_no_width():
    net = two()
    conv, linear = net.quantized_layers
    assert np.isinf(net.errors.weights[:, 0]).all()
    assert np.isinf(net.errors.activations[0, 0])
    assert np.isfinite(net.errors.activations[1]).all()
    found = conv.slot.quantizer.weight(conv.weight, 3) - conv.weight
    assert net.errors.weights[0, 2] == pytest.approx(found.square().mean().item(), rel=1e-5)
    assert (np.diff(net.errors.weights[:, 1:]) < 0).all()
    assert linear.slot.quantizer.activation_step.shape == (8,)


def test_a_layer_of_zeros_stays_zero_and_numbers_that_are_none_are_refused():
    layer = Layer("x", "linear", 4, 2)
    quantizer = LSQQuantizer(layer, torch.zeros(2, 4), torch.zeros(9), Settings())
    assert not quantizer.weight(torch.zeros(2, 4), 2).any()
    with pytest.raises(InputError, match="weights of 'x'"):
        LSQQuantizer(layer, torch.full((2, 4), math.nan), torch.zeros(9), Settings())


# -- widths ------------------------------------------------------------------------------------


def test_widths_are_known_without_the_class_and_one_bit_weights_are_refused(digits):
    assert widths("lsq") == widths_of(QUANTIZERS["lsq"]) == (range(2, 9), range(1, 9))
    net = two()
    for bad in ([[1, 4], [4, 4]], [[4, 1], [4, 4]]):
        with pytest.raises(InputError, match="2 to 8"):
            net.set_policy(bad)
    net.set_policy([[2, 2], [2, 1]])
    with pytest.raises(InputError, match="not 1"):
        Codes.of(1, signed=True)
    assert not digits.space.allowed[:, 0, 0].any()
    bits = digits.uniform().copy()
    bits[2, 0] = 1
    with pytest.raises(InputError, match="2 to 8"):
        digits.evaluate(bits)


# -- parameters of a network -------------------------------------------------------------------


def test_steps_are_trained_and_are_not_in_the_state_dict():
    net = two()
    plain = two(quantizer="linear")
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert len(list(net.parameters())) == len(list(plain.parameters())) + 4
    assert [name for name, _ in net.module.named_parameters()] == list(net.state_dict())
    before = steps_of(net)
    net.set_policy([[3, 4], [2, 3]])
    train_once(net)
    moved = {
        name: (step != before[name]).nonzero().flatten().tolist()
        for name, step in steps_of(net).items()
    }
    assert moved == {
        "0.weight_step": [1], "0.activation_step": [2], "1.weight_step": [0],
        "1.activation_step": [2],
    }  # fmt: skip


def test_restoring_brings_steps_back_bit_for_bit_and_keeps_them_the_same_tensors():
    net = two()
    before, tensors = steps_of(net), list(net.parameters())
    x = numbers(4, 2, 6, 6, seed=9)
    net.set_policy([[3, 4], [2, 3]])
    with torch.no_grad():
        first = net(x)
    for bits in ([[3, 4], [2, 3]], [[8, 8], [8, 8]]):
        net.set_policy(bits)
        train_once(net)
    assert not same(before, steps_of(net))
    net.restore()
    assert same(before, steps_of(net))
    assert all(old is new for old, new in zip(tensors, net.parameters(), strict=True))
    net.set_policy([[3, 4], [2, 3]])
    with torch.no_grad():
        assert torch.equal(net(x), first)


@pytest.mark.parametrize("how", ["in place", "training", "frozen weights"])
def test_weights_from_memory_follow_the_steps(how):
    net = two()
    net.set_policy([[3, 8], [3, 8]])
    x = numbers(4, 2, 6, 6, seed=9)
    with torch.no_grad():
        first, again = net(x), net(x)
        assert torch.equal(first, again)
        layer = net.quantized_layers[0]
        assert layer.slot.quantized(layer.weight) is layer.slot.quantized(layer.weight)
    if how == "in place":
        with torch.no_grad():
            layer.slot.quantizer.weight_step.mul_(0.5)
    else:
        net.module.requires_grad_(how == "training")
        train_once(net, 1.0)
    with torch.no_grad():
        found = layer.slot.quantized(layer.weight)
        assert torch.equal(found, layer.slot.quantizer.weight(layer.weight, 3))
        assert not torch.equal(net(x), first)
        net.restore()
        assert torch.equal(net(x), first)


@pytest.mark.parametrize(
    "copied", [QuantizedNetwork.clone, lambda n: pickle.loads(pickle.dumps(n))]
)
def test_a_copy_has_steps_of_its_own(copied):
    net = two()
    bits = [[3, 4], [2, 3]]
    net.set_policy(bits)
    start = steps_of(net)
    train_once(net)
    other, trained = copied(net), steps_of(net)
    assert same(steps_of(other), trained)
    for layer, step in zip(other.quantized_layers, other.learned, strict=True):
        assert layer.slot.quantizer is step
    train_once(other)
    assert same(steps_of(net), trained)
    assert not same(steps_of(other), trained)
    other.restore()
    assert same(steps_of(other), start)
    assert other.quantized_layers[0].slot.is_pretrained(other.quantized_layers[0].weight)


def test_moving_a_network_moves_steps_and_what_they_are_restored_to():
    net = two()
    net.set_policy([[3, 4], [2, 3]])
    with torch.no_grad():
        net(numbers(4, 2, 6, 6))
    net.double()
    assert {step.dtype for step in net.learned.parameters()} == {torch.float64}
    assert all(layer.slot.is_pretrained(layer.weight) for layer in net.quantized_layers)
    with torch.no_grad():
        assert net(numbers(4, 2, 6, 6).double()).dtype == torch.float64
    train_once(net.float())
    net.restore()
    assert all(layer.slot.is_pretrained(layer.weight) for layer in net.quantized_layers)


class Decaying(LinearQuantizer, nn.Module):
    """A clip of the weights that decays as weights do, and one of the inputs that does not."""

    def __init__(self, layer, weight, inputs, settings):
        nn.Module.__init__(self)
        LinearQuantizer.__init__(self, layer, weight, inputs, settings)
        self.wide = nn.Parameter(torch.ones(8, 1))
        self.flat = nn.Parameter(torch.ones(8))

    def weight(self, weight, bits):
        return super().weight(weight, bits) + 0 * (self.wide.sum() + self.flat.sum())


def test_a_quantizer_of_ones_own_decides_by_dimensions_whether_its_parameters_decay(
    digits, monkeypatch
):
    monkeypatch.setitem(QUANTIZERS._entries, "decaying", Decaying)
    bench = make_task(quantizer="decaying", evaluator=BRIEF).trained().bench
    net = bench.network
    net.set_policy(digits.uniform())
    finetune(net, bench.images["train"], Recipe(steps=3, weight_decay=0.1), 0)
    assert all((one.flat == 1).all() and (one.wide < 1).all() for one in net.learned)
    net.restore()
    assert all((one.wide == 1).all() for one in net.learned)


# -- evaluations -------------------------------------------------------------------------------


def test_an_answer_does_not_depend_on_what_was_evaluated_before(digits):
    evaluator = digits.trained()
    first, second = digits.space.random(np.random.default_rng(0), 2)
    measured = [evaluator.measurer.measure(bits).accuracy for bits in (first, first, second, first)]
    assert measured[0] == measured[1] == measured[3]
    before = steps_of(evaluator.bench.network)
    evaluator.measurer.measure(second)
    assert not same(before, steps_of(evaluator.bench.network))


@pytest.mark.parametrize("tier", [BRIEF, "ptq_bn"])
def test_workers_batches_and_shared_beginnings_give_the_answers_of_one_by_one(tier):
    def task(**options):
        return make_task(quantizer="lsq", evaluator=tier, budget="w3a2", **options)

    alone, several = task(reuse=0), task(workers=2)
    policies = list(alone.space.random(np.random.default_rng(1), 4))
    policies[2] = policies[1].copy()
    policies[2][-2:] = policies[3][-2:]
    try:
        found = [one.accuracy for one in several.evaluate_batch(policies)]
    finally:
        several.evaluator.close()
    expected = [alone.evaluate(bits).accuracy for bits in policies]
    assert found == expected
    assert [one.accuracy for one in task().evaluate_batch(policies)] == expected


def test_steps_alone_win_accuracy_back_with_frozen_weights():
    bench = make_task(quantizer="lsq", clip="lsq", evaluator=BRIEF).trained().bench
    net = bench.network
    bits = net.probe(3)
    bits[[0, -1]] = 8
    untouched = bench.measure(bits, Recipe(steps=0), 0, ("val",))["val"]
    weights = {name: weight.clone() for name, weight in net.module.named_parameters()}
    net.module.requires_grad_(False)
    recipe = Recipe(steps=28, learning_rate=0.5)
    found = [bench.measure(bits, recipe, seed, ("val",))["val"] for seed in (0, 1)]
    assert min(found) > untouched + 4  # 78.4 and 79.1 against 68.4; 17 with the other sign
    assert same(weights, dict(net.module.named_parameters()))


def test_every_way_to_an_environment_takes_it():
    env = gym.make("HAQ-BISMO-Edge-v0", quantizer="lsq", evaluator=BRIEF)
    assert env.unwrapped.task.space.allowed[:, 0, 1].any()
    env.reset(seed=0)
    done = False
    while not done:
        _, _, done, _, info = env.step(env.action_space.sample())
    assert 0 < info["accuracy"] <= 100


def test_answers_are_kept_apart_by_quantizer_and_start():
    def address(**options):
        task = make_task(evaluator=BRIEF, **options)
        return task.trained()._address(b"policy")

    found = [address(), address(quantizer="lsq"), address(quantizer="lsq", clip="lsq")]
    assert len(set(found)) == 3
    assert address(quantizer="lsq") == found[1]


def test_who_borrows_the_float_network_gives_the_steps_back():
    net = two()
    net.set_policy([[3, 4], [2, 3]])
    train_once(net)
    before = steps_of(net)
    with _float_network(net):
        assert not same(before, steps_of(net))
    assert same(before, steps_of(net))
