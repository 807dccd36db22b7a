"""Networks that keep something, draw something or go on living: an answer is that of the policy."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from haq_env.data import Dataset, Split
from haq_env.evaluation import Recipe
from haq_env.make import make_task
from haq_env.quantization.convolution import convolve
from haq_env.quantization.kernel_check import exact_weights
from haq_env.quantization.products import Unsupported
from haq_env.search.sensitivity import measure_sensitivity

BITS = {width: np.full((3, 2), width) for width in (2, 3, 4, 8)}
SHORT = Recipe(steps=4, batch_size=16, learning_rate=0.05, bn_images=32)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Noisy copies of four pictures."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 1, 8, 8))

    def split(count: int) -> Split:
        labels = rng.integers(0, 4, count)
        noisy = pictures[labels] * 0.5 + rng.normal(64, 40, (count, 1, 8, 8))
        return Split(np.clip(noisy, 0, 255).astype(np.uint8), labels)

    return Dataset("noisy", 4, (0.5,), (0.25,), split(160), split(96), split(96))


def trained(network: nn.Module, data: Dataset) -> nn.Module:
    images = (torch.from_numpy(data.train.images).float() / 255 - 0.5) / 0.25
    labels = torch.from_numpy(data.train.labels)
    sgd = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    network.train()
    for _ in range(12):
        for index in torch.split(torch.randperm(len(labels)), 32):
            sgd.zero_grad()
            F.cross_entropy(network(images[index]), labels[index]).backward()
            sgd.step()
    return network.eval()


class Net(nn.Module):
    """Two convolutions with a normalisation each, and a classifier."""

    def __init__(self, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), norm(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 16, 3, padding=1), norm(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class OwnNorm(nn.Module):
    """A batch norm as tutorials write it: its statistics are assigned, or updated in place."""

    in_place = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(f(channels)) for f in (torch.ones, torch.zeros))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x):
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            if self.in_place:
                with torch.no_grad():
                    self.mean.lerp_(mean, 0.1)
                    self.var.lerp_(var, 0.1)
            else:
                self.mean = 0.9 * self.mean + 0.1 * mean.detach()
                self.var = 0.9 * self.var + 0.1 * var.detach()
        scale = self.weight * torch.rsqrt(var + 1e-5)
        return x * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)


class OwnNormInPlace(OwnNorm):
    """The same, updated in place."""

    in_place = True


class FrozenNorm(nn.BatchNorm2d):
    """A batch norm that never looks at the batch."""

    def forward(self, x):
        numbers = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(x, *numbers, False, 0.0, self.eps)


class Warming(Net):
    """Its dropout grows with every training step, which it counts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x):
        if self.training:
            self.seen += 1
        x = F.dropout(F.relu(self.norm1(self.conv1(x))), min(0.8, 0.1 * self.seen), self.training)
        return self.fc(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class Skipping(Net):
    """Stochastic depth, drawn with Python's generator and with NumPy's."""

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        if not self.training or random.random() < 0.5:
            x = x * 1.5
        if self.training:
            x = x * np.random.uniform(0.5, 1.5)  # noqa: NPY002
        return self.fc(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class Remembering(Net):
    """It begins with nothing, and training fills what it keeps, with chance of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", None)
        self.register_buffer("seen", torch.zeros(0))
        self.average, self.drawn, self.chance = None, [], np.random.default_rng(0)

    def forget(self):
        self.average = self.centre = None
        self.seen = torch.zeros(0)
        self.drawn.clear()
        del self.late

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        if self.training:
            mean = x.mean((0, 2, 3), keepdim=True).detach()
            self.average = mean if self.average is None else 0.5 * self.average + 0.5 * mean
            self.centre = 0.5 * mean
            self.seen = torch.cat([self.seen, torch.ones(1)])
            self.drawn.append(self.chance.uniform(0.5, 1.5))
            self.late = 1 + 0.1 * len(self.drawn)
            x = x * self.drawn[-1]
        if self.average is not None:
            x = x - self.average + self.centre
        x = F.relu(self.norm2(self.conv2(x * getattr(self, "late", 1.0) + 0.1 * self.seen.sum())))
        return self.fc(x.mean((2, 3)))


class Modular(Net):
    """Its ReLUs are modules, which may be fused with what is before and behind them."""

    def __init__(self, relu=nn.ReLU) -> None:
        super().__init__()
        self.relu1, self.relu2 = relu(), relu()

    def forward(self, x):
        x = self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class SquaredReLU(nn.Module):
    """What a ReLU with a hook that squares computes."""

    def forward(self, x):
        return F.relu(x).square()


class Writing(Net):
    """Its forward normalises the images where they are."""

    def forward(self, x):
        x -= 0.25
        x *= 1.5
        return super().forward(x)


class Copying(Net):
    """The same on a copy."""

    def forward(self, x):
        return super().forward((x - 0.25) * 1.5)


class Scheduled(Net):
    """A factor that training moves, a number or a tensor that is no buffer."""

    def __init__(self, factor=1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        if self.training:
            self.factor = self.factor * 0.9
        x = F.relu(self.norm1(self.conv1(x))) * self.factor
        return self.fc(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


def task(network, data, recipe=SHORT, **options):
    return make_task(network, data, evaluator=recipe, budget=1.0, **options)


def test_statistics_that_a_forward_assigns_are_no_obstacle(data):
    network = trained(Net(OwnNorm), data)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    own = task(network, data)
    assert own.float_accuracy > 50
    assert own.evaluate(BITS[8]).accuracy > 50
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_batch_norm_that_looks_at_no_batch_keeps_its_statistics(data):
    plain = trained(Net(), data)
    frozen = Net(FrozenNorm)
    frozen.load_state_dict(plain.state_dict())
    own = task(frozen.eval(), data, "ptq_bn")
    assert own.evaluate(BITS[8]).accuracy >= own.float_accuracy - 5


def test_a_network_may_be_trained_on_while_its_task_is_used(data, tmp_path):
    network = trained(Net(), data)
    path = tmp_path / "cache.sqlite"
    early = task(network, data, "ptq_bn")
    wanted = early.evaluate(BITS[4]).accuracy
    late = task(network, data, "ptq_bn", cache=path)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert late.evaluate(BITS[4]).accuracy == wanted
    assert task(network, data, "ptq_bn", cache=path).evaluate(BITS[4]).accuracy < wanted


def test_integers_follow_statistics_of_ones_own_norm_through_a_finetuning(data):
    try:
        exact_weights()
    except Unsupported as error:
        pytest.skip(str(error))
    network = trained(Net(OwnNormInPlace), data)
    recipe = Recipe(steps=40, batch_size=16, learning_rate=0.05, bn_images=32)
    both = [task(network, data, recipe, inference=name) for name in ("float", "int8")]
    for bits in (BITS[2], BITS[8]):
        ours, integers = (each.evaluate(bits).accuracy for each in both)
        assert abs(ours - integers) <= 100 / 96 + 1e-9  # an image


def test_a_hook_that_no_kernel_would_call_is_said(data):
    network = trained(Net(), data)
    network.norm1.register_forward_hook(lambda module, inputs, output: output * 0.5)
    with pytest.warns(RuntimeWarning, match="int8 was asked for"):
        found = task(network, data, "ptq_bn", inference="int8").evaluate(BITS[8])
    assert found.accuracy == task(network, data, "ptq_bn").evaluate(BITS[8]).accuracy


@pytest.mark.parametrize("factor", [1.0, torch.ones(1)])
def test_integers_follow_what_training_changes_besides_tensors_of_torch(factor, data):
    try:
        exact_weights()
    except Unsupported as error:
        pytest.skip(str(error))
    network = trained(Scheduled(factor), data)
    network.factor = factor  # 0.9 ** 60 by now
    both = [task(network, data, inference=name) for name in ("float", "int8")]
    for bits in (BITS[8], BITS[4], BITS[8]):
        logits = []
        for each in both:
            each.evaluate(bits)
            bench = each.trained().bench
            runs = bench.inference.serving()[0]
            logits.append(runs(bench.images["val"].batch(slice(0, 64))).detach())
        assert torch.allclose(*logits, atol=0.05 * float(logits[0].std()))


def test_hooks_see_and_change_what_they_would_without_quantization(data):
    plain = trained(Modular(), data)
    wanted, hooked = Modular(SquaredReLU), Modular()
    for network in (wanted, hooked):
        network.load_state_dict(plain.state_dict())
        network.eval()
    for relu in (hooked.relu1, hooked.relu2):
        relu.register_forward_hook(lambda module, inputs, output: output.square())
    kept = []
    hooked.conv2.register_forward_hook(lambda *args: kept.append((args[2], args[2].clone())))
    networks = [task(each, data, "ptq_bn").trained().bench.network for each in (wanted, hooked)]
    images = torch.randn(16, 1, 8, 8)
    for bits in (BITS[8], BITS[3]):
        logits = []
        for network in networks:
            network.set_policy(bits)
            with torch.no_grad():
                logits.append(network(images))
        assert torch.equal(*logits)
        assert torch.equal(*kept[-1])  # nothing has written over it


@pytest.mark.parametrize("name", ["output_kl", "loss", "fit", "hawq"])
def test_a_forward_that_writes_into_its_input_gets_the_same_images_every_time(name, data):
    network = trained(Copying(), data)
    writing = Writing()
    writing.load_state_dict(network.state_dict())
    tables = [
        measure_sensitivity(task(each, data, "ptq_bn"), name, 0).table
        for each in (network, writing.eval())
    ]
    finite = np.isfinite(tables[0])
    assert np.array_equal(finite, np.isfinite(tables[1]))
    assert np.allclose(tables[0][finite], tables[1][finite], rtol=1e-3, atol=1e-7)


def test_a_batch_norm_that_keeps_no_statistics_is_warned_of(data):
    network = Net(partial(nn.BatchNorm2d, track_running_stats=False))
    with pytest.warns(RuntimeWarning, match="'norm1' keeps no running statistics"):
        task(trained(network, data), data, "ptq_bn").float_accuracy  # noqa: B018


@pytest.mark.parametrize("kind", [Warming, Skipping, Remembering])
def test_an_answer_does_not_depend_on_what_was_asked_before(kind, data):
    network = trained(kind(), data)
    if kind is Remembering:
        network.forget()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    alone = [task(network, data).evaluate(BITS[width]).accuracy for width in (8, 4, 3)]
    one = task(network, data)
    assert [one.evaluate(BITS[width]).accuracy for width in (8, 4, 3)] == alone
    assert random.getstate() == python
    assert all(map(np.array_equal, np.random.get_state(), numpy))  # noqa: NPY002


def test_a_callers_autocast_changes_no_answer(data):
    network = trained(Net(), data)
    wanted = [task(network, data).evaluate(BITS[width]).accuracy for width in (2, 3, 4)]
    own = task(network, data)
    with torch.autocast("cpu"):
        assert [own.evaluate(BITS[width]).accuracy for width in (2, 3, 4)] == wanted


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), 3])
def test_strided_products_are_those_of_torch(stride):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 1, stride=stride)
    images = torch.randn(4, 3, 9, 9, requires_grad=True)
    results = []
    for function in (layer, lambda x: convolve(layer, x, layer.weight)):
        outputs = function(images)
        grads = torch.autograd.grad(outputs.square().sum(), [images, layer.weight, layer.bias])
        results.append([outputs.detach(), *grads])
    for theirs, ours in zip(*results, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-4)


def test_a_first_layer_of_strided_products_is_finetuned(tmp_path):
    code = """
        import numpy as np, torch
        from torch import nn
        from haq_env import make_task
        from haq_env.data import Dataset, Split
        from haq_env.evaluation import Recipe

        rng = np.random.default_rng(0)
        split = Split(rng.integers(0, 256, (64, 3, 16, 16), dtype=np.uint8), np.arange(64) % 4)
        data = Dataset("noise", 4, (0.5,) * 3, (0.25,) * 3, split, split, split)
        for channels in (4, 8, 12, 16, 32):
            network = nn.Sequential(
                nn.Conv2d(3, channels, 1, stride=2), nn.ReLU(), nn.Conv2d(channels, 8, 3),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
            recipe = Recipe(steps=6, batch_size=16, bn_images=16)
            task = make_task(network, data, evaluator=recipe, budget="w4a4")
            task.evaluate(task.uniform())
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
