"""Integer kernels compute what the plain path computes, or say why they cannot and stand back."""

import copy
import time

import numpy as np
import pytest
import torch
import torchvision
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from haq_env.evaluation import Recipe
from haq_env.evaluation.finetune import finetune
from haq_env.make import make_task
from haq_env.networks import load_network
from haq_env.networks.trace import trace
from haq_env.policy import uniform
from haq_env.quantization import kernels
from haq_env.quantization.integer import IntegerNetwork, IntegerProgram, Unsupported
from haq_env.quantization.kernel_check import exact_weights
from haq_env.quantization.kernels import Grid, Kernel
from haq_env.quantization.network import QuantizedNetwork
from haq_env.quantization.products import HALF, After, Halves, Product, exact

exact_weights.cache_clear()
try:
    exact_weights()
except Unsupported as unsupported:
    REASON = str(unsupported)
else:
    REASON = ""
needs_kernels = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(build, *args, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = build(*args, **settings)
        randomise(module)
        return module.eval()


@pytest.fixture(params=["as this processor is", "without VNNI"])
def processor(request, monkeypatch):
    """This processor, and what it would be without VNNI: 8-bit weights are taken apart there."""
    if request.param == "without VNNI":
        monkeypatch.setattr(kernels, "exact_weights", lambda depthwise: HALF)


def randomise(module):
    """Give batch norms what training gives them: statistics, gains of both signs, shifts."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, -0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)


def quantized(module, shape, count=16, quantizer="linear"):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, *shape, generator=generator)
    module.train()
    with torch.no_grad():
        module(images)  # statistics that fit
    module.eval()
    network = QuantizedNetwork(
        module, trace(module, shape), quantizer=quantizer, calibration_images=images
    )
    return network, images


def distance(network, images):
    """Relative distance of the logits of both paths."""
    with torch.no_grad():
        expected = network(images)
    found = IntegerNetwork.of(network)(images)
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


class OneLayer(nn.Module):
    def __init__(self, signed, **settings):
        super().__init__()
        self.signed = signed
        self.conv = nn.Conv2d(**settings)
        self.bn = nn.BatchNorm2d(settings["out_channels"])

    def forward(self, images):
        return self.bn(self.conv(images if self.signed else F.relu(images))).flatten(1)


SHAPES = {
    "pointwise": {"in_channels": 12, "out_channels": 20, "kernel_size": 1},
    "depthwise": {"in_channels": 16, "out_channels": 16, "kernel_size": 3, "groups": 16},
    "strided": {"in_channels": 6, "out_channels": 9, "kernel_size": 5, "stride": 2, "padding": 2},
    "grouped": {"in_channels": 8, "out_channels": 16, "kernel_size": 3, "groups": 4, "dilation": 2},
}


@needs_kernels
@pytest.mark.parametrize("quantizer", ["linear", "lsq"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_differs_from_exact_arithmetic_only_in_the_last_digit_of_float32(
    shape, signed, quantizer, processor
):
    settings = SHAPES[shape]
    module = seeded(OneLayer, signed, **settings)
    network, images = quantized(module, (settings["in_channels"], 9, 9), quantizer=quantizer)
    shrink_steps(network)
    w_bits = network.quantized_layers[0].slot.widths[0]
    for bits in [(w, a) for w in (1, 2, 5, 8) if w in w_bits for a in (1 + signed, 3, 8)]:
        network.set_policy([bits])
        integer = IntegerNetwork.of(network)(images)
        exact = exactly(network, images)
        assert torch.allclose(integer.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max())


@torch.no_grad()
def shrink_steps(network):
    """Make learned steps so small that the lowest codes are there, one below the narrow grid's."""
    for step in network.learned.parameters():
        step.mul_(0.5)


def exactly(network, images):
    """The one-layer network in float64, from the values that the quantizers give in float32."""
    layer = network._layers[0]
    with torch.no_grad():
        inputs = images if network.layers[0].signed_input else F.relu(images)
        values, weight = layer.operands(inputs)
        sums = nn.functional.conv2d(
            *(values.double(), weight.double(), layer.bias.double(), layer.stride),
            *(layer.padding, layer.dilation, layer.groups),
        )
        return copy.deepcopy(network.module.bn).double()(sums).flatten(1)


@pytest.mark.parametrize("quantizer", ["linear", "lsq"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_stored_codes_are_those_of_the_plain_quantizer(bits, signed, quantizer):
    if signed and bits == 1:
        pytest.skip("one bit only holds the sign")
    module = seeded(OneLayer, signed, **SHAPES["pointwise"])
    network, _ = quantized(module, (12, 9, 9), quantizer=quantizer)
    shrink_steps(network)
    network.set_policy([(8, bits)])
    slot = network._layers[0].slot
    grid = Grid.of(slot)
    # more than one chunk, and values on the borders between codes
    values = 3 * torch.randn(9, 12, 70, 60, generator=torch.Generator().manual_seed(2))
    values[0, 0, :8, 0] = grid.step * (torch.arange(8) + 0.5)
    expected = slot.quantizer.activation(values, bits)
    stored = grid.encode(values.contiguous(memory_format=torch.channels_last))
    assert torch.equal((stored.float() - grid.zero) * grid.step, expected)


NETWORKS = {
    "mobilenet_v1": (lambda: load_network("mobilenet_v1", classes=10, image_size=32, width=0.25)),
    "mobilenet_v2": (lambda: load_network("mobilenet_v2", classes=10, image_size=32, width=0.25)),
    "resnet20": (lambda: load_network("resnet20", classes=10, image_size=32)),
    "resnet18": (lambda: load_network("resnet18", classes=10, image_size=32, width=0.25)),
    "resnet50": (lambda: load_network("resnet50", classes=10, image_size=64, width=0.125)),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10)),
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(num_classes=10)),
}


@needs_kernels
@pytest.mark.parametrize("name", NETWORKS)
def test_traced_networks_run_on_integer_kernels(name):
    network, images = quantized(seeded(NETWORKS[name]), (3, 64, 64), count=8)
    network.set_policy(uniform(len(network.layers), 8, 8))
    # untrained deep networks amplify a single code that fell to the other side
    assert distance(network, images) < 0.1


class Residual(nn.Module):
    """What a careless fusion of residual sums gets wrong, one way at a time."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.bias = nn.Parameter(torch.linspace(-1, 1, 8).view(8, 1, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        x = self.first(images)
        kind = self.kind
        if kind == "read again later":
            y = self.relu(self.bn(self.conv(x)) + x) + x
        elif kind == "a view read again":
            view = x.flatten(2)
            y = self.bn(self.conv(x)) + x
            y = y + view.view_as(y)
        elif kind == "broadcast":
            y = self.relu(self.bn(self.conv(x)) + self.bias)
        elif kind == "broadcast over positions":
            y = self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True)
        elif kind == "twice itself":
            z = self.bn(self.conv(x))
            y = z + z
        elif kind == "changed in place":
            z = self.conv(x)
            x.mul_(-0.5)
            y = self.bn(z) + x
        elif kind == "changed in place before batch norm":
            z = self.conv(x)
            x.mul_(-0.5)
            y = self.bn(z)
        elif kind == "written into and read again":
            y = F.relu(x)
            y.add_(self.bn(self.conv(y)))
        elif kind == "scaled":
            y = torch.add(self.bn(self.conv(x)), x, alpha=0.5)
        else:
            y = self.bn(self.conv(x))
            y += x
            y = F.relu6(y)
        return self.head(y.mean((2, 3)))


@needs_kernels
@pytest.mark.parametrize(
    "kind",
    [
        *("read again later", "a view read again", "broadcast", "broadcast over positions"),
        *("twice itself", "changed in place", "changed in place before batch norm", "scaled"),
        *("relu6", "written into and read again"),
    ],
)
def test_sums_of_every_kind_stay_what_they_are(kind, processor):
    network, images = quantized(seeded(Residual, kind), (3, 12, 12))
    for bits in (8, 4):
        network.set_policy(uniform(len(network.layers), bits, bits))
        assert distance(network, images) < 2e-3


@needs_kernels
def test_a_conversion_reads_the_weights_and_bits_of_its_moment():
    network, images = quantized(seeded(NETWORKS["mobilenet_v1"]), (3, 32, 32))
    program = IntegerProgram.of(network)
    network.set_policy(uniform(28, 8, 8))
    before = program.convert()
    earlier = before(images)
    network.set_policy(uniform(28, 6, 7))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.01)
    network.recalibrate_batchnorm(images)
    with torch.no_grad():
        expected = network(images)
    found = program.convert()(images)
    assert (found - expected).norm() < 0.3 * (found - earlier).norm()
    assert torch.equal(before(images), earlier)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(("mobilenet_v1", 0), ("mobilenet_v1", 6), ("mobilenet_v2", 0)),
        pytest.param("mobilenet_v2", 6, marks=pytest.mark.slow),
    ],
)
def test_at_least_999_of_1000_predictions_agree_before_and_after_finetuning(name, steps):
    bench = make_task(name, "digits").evaluator.bench
    network, train = bench.network, bench.images["train"]
    program = IntegerProgram.of(network)
    rng = np.random.default_rng(steps)
    images = torch.cat([bench.images[part].batch(slice(None)) for part in ("val", "test")])
    agree = []
    for _ in range(2):
        network.restore()
        network.set_policy(rng.integers(2, 9, (len(network.layers), 2)))
        if steps:
            finetune(network, train, Recipe(steps), 0)
        network.recalibrate_batchnorm(train.batch(slice(0, 128)))
        network.eval()
        integers = program.convert()
        with torch.no_grad():
            for batch in images.split(128):
                agree.append(network(batch).argmax(dim=1) == integers(batch).argmax(dim=1))
    assert torch.cat(agree).float().mean() >= 0.999


@needs_kernels
@pytest.mark.slow
def test_integers_do_not_change_which_policies_win():
    task = make_task("mobilenet_v1", "digits", evaluator="ptq_bn", budget="w4a4")
    bench = task.evaluator.bench
    network, train, val = bench.network, bench.images["train"], bench.images["val"]
    program = IntegerProgram.of(network)
    rng = np.random.default_rng(0)
    plain, integer, agree, exact = [], [], [], []
    images = val.batch(slice(None))
    for _ in range(50):
        bits = task.project(rng.integers(2, 9, (len(task.layers), 2)))
        assert task.cost(bits) == pytest.approx(task.budget.limit, rel=1e-2)  # all cost the same
        network.restore()
        network.set_policy(bits)
        network.recalibrate_batchnorm(train.batch(slice(0, 512)))
        network.eval()
        integers = program.convert()
        with torch.no_grad():
            found, expected = integers(images).argmax(dim=1), network(images).argmax(dim=1)
            true = copy.deepcopy(network).double()(images.double()).argmax(dim=1)
        agree.append(found == expected)
        exact.append(found == true)
        plain.append(float((expected == val.labels).float().mean()))
        integer.append(float((found == val.labels).float().mean()))
    # float32 rounds its sums and can cross a border between two codes; integers do not
    assert torch.cat(agree).float().mean() >= 0.999
    assert torch.cat(exact).float().mean() >= 0.9999
    assert spearmanr(plain, integer).statistic > 0.999
    assert plain[int(np.argmax(integer))] >= max(plain) - 1 / len(val) - 1e-9


@needs_kernels
def test_without_vnni_only_weights_that_can_saturate_are_taken_apart(monkeypatch):
    monkeypatch.setattr(kernels, "exact_weights", lambda depthwise: HALF)
    network, _ = quantized(seeded(OneLayer, False, **SHAPES["pointwise"]), (12, 9, 9))
    layer = network._layers[0]
    apart = []
    for bits in [(8, 8), (8, 7), (7, 8), (8, 1)]:
        network.set_policy([bits])
        apart.append(isinstance(Kernel(layer)._compute, Halves))
    assert apart == [True, False, False, False]


def test_a_weight_of_the_smallest_code_counts_as_the_largest():
    weight = torch.full((2, 20), 63, dtype=torch.int8)
    one, none = torch.ones(2), torch.zeros(2)
    for smallest, kind in ((-63, Product), (-128, Halves)):
        weight[0, 0] = smallest
        product = Product(weight, 0, None, one, none, After())
        assert type(exact(product, largest_input=255, largest_weight=HALF)) is kind


@needs_kernels
def test_sums_that_do_not_fit_into_32_bits_are_refused():
    module = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(70_000, 2)).eval()
    network, _ = quantized(module, (7, 100, 100), count=2)
    network.set_policy([(8, 8)])
    with pytest.raises(Unsupported, match=r"sums of 70,000 products do not fit into 32 bits"):
        IntegerNetwork.of(network)


@needs_kernels
def test_both_paths_give_the_same_accuracy_up_to_one_image_and_share_no_answers(tmp_path):
    settings = {"evaluator": Recipe(steps=4), "cache": tmp_path / "answers.sqlite"}
    plain = make_task(**settings)
    integer = make_task(**settings, inference="int8")
    one_image = 100 / len(plain.evaluator.bench.images["val"])
    for bits in (uniform(28, 4, 4), uniform(28, 8, 8)):
        expected, found = plain.evaluate(bits), integer.evaluate(bits)
        assert not found.cache_hit
        assert found.note == expected.note == ""
        assert abs(found.accuracy - expected.accuracy) <= one_image + 1e-9
    assert make_task(**settings, inference="int8").evaluate(bits).cache_hit
    assert integer.settings["inference"] == "int8"
    assert "inference" not in plain.settings


@needs_kernels
def test_auto_takes_one_of_the_two_paths_and_says_so():
    evaluator = make_task(inference="auto").evaluator
    inference = evaluator.bench.inference
    assert inference.name == "int8" or "faster" in inference.note


@needs_kernels
def test_auto_counts_the_conversion_of_every_policy(monkeypatch):
    convert = IntegerProgram.convert

    def slow(program):
        time.sleep(0.5)  # several times what either path takes for these images
        return convert(program)

    monkeypatch.setattr(IntegerProgram, "convert", slow)
    inference = make_task(inference="auto").evaluator.bench.inference
    assert inference.name == "float"
    assert "faster" in inference.note


def test_kmeans_weights_are_measured_in_float_with_a_note():
    bits = uniform(28, 4, 8)
    settings = {"quantizer": "kmeans", "evaluator": Recipe(steps=0, bn_images=64)}
    answer = make_task(**settings, inference="int8").evaluate(bits)
    assert "float" in answer.note
    assert answer.accuracy == make_task(**settings).evaluate(bits).accuracy


def test_kernels_that_saturate_are_found_out_and_not_used(monkeypatch):
    bits = uniform(28, 4, 4)
    settings = {"evaluator": Recipe(steps=1)}
    operator = torch.ops.onednn.qconv2d_pointwise

    class Saturating:
        def __call__(self, *arguments):
            return operator(*arguments).clamp_(-(1 << 15), (1 << 15) - 1)

        binary = staticmethod(operator.binary)

    monkeypatch.setattr(torch.ops.onednn, "qconv2d_pointwise", Saturating())
    exact_weights.cache_clear()
    try:
        answer = make_task(**settings, inference="int8").evaluate(bits)
    finally:
        exact_weights.cache_clear()
    assert answer.note == ("float inference: integer convolutions are not exact on this processor")
    assert answer.accuracy == make_task(**settings).evaluate(bits).accuracy


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        features = self.conv(images)
        return features.mean((2, 3)) if features.sum() > 0 else features.amax((2, 3))


@needs_kernels
def test_what_has_no_integer_form_is_refused_with_a_reason():
    network, images = quantized(seeded(NETWORKS["resnet20"]), (3, 32, 32), count=4)
    with pytest.raises(Unsupported, match="in float"):
        IntegerNetwork.of(network)
    network.set_policy(uniform(20, 4, 4))
    network.train()
    with pytest.raises(Unsupported, match="training mode"):
        IntegerNetwork.of(network)
    network.eval().double()
    with pytest.raises(Unsupported, match="float32"):
        IntegerNetwork.of(network)
    layers = trace(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 8, 8)).layers
    module = Branching()
    table = trace(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 8, 8))
    table = type(table)(
        table.network, (type(layers[0])(**{**vars(layers[0]), "name": "conv"}),), (3, 8, 8)
    )
    branching = QuantizedNetwork(module, table, calibration_images=images[:, :, :8, :8])
    branching.set_policy([[4, 4]])
    with pytest.raises(Unsupported, match="cannot be traced"):
        IntegerNetwork.of(branching)


@needs_kernels
def test_padding_that_integers_do_not_know_is_refused():
    module = seeded(OneLayer, True, **SHAPES["pointwise"], padding=1, padding_mode="reflect")
    network, _ = quantized(module, (12, 9, 9))
    network.set_policy([(4, 4)])
    with pytest.raises(Unsupported, match="padding"):
        Kernel(network._layers[0])
