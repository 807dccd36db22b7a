"""Linear quantization, calibration, and the network whose bits can be switched."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import laplace, norm
from torch import Tensor, nn
from torch.nn import functional as F

from haq_env.errors import InputError
from haq_env.layers import Layer, LayerTable
from haq_env.quantization import QUANTIZERS
from haq_env.quantization.batchnorm import recalibrate_batchnorm
from haq_env.quantization.calibration import clip_table, sampling_stride
from haq_env.quantization.linear import Gradient, quantize_activation, quantize_weight
from haq_env.quantization.network import QuantizedNetwork

W = torch.tensor([-1, -0.55, -0.2, 0, 0.1, 0.45, 0.9, 1.3])
X = torch.tensor([-0.5, 0, 0.3, 0.5, 0.9, 1.6, 2.5])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another
    yield
    torch.set_num_threads(threads)


# --- fake quantizers: values ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (2, [-1, -1, 0, 0, 0, 0, 1, 1]),
        (3, [-1, -2 / 3, -1 / 3, 0, 0, 1 / 3, 1, 1]),
        (4, [-1, -4 / 7, -1 / 7, 0, 1 / 7, 3 / 7, 6 / 7, 1]),
    ],
)
def test_weights_take_the_values_of_the_symmetric_narrow_grid(bits, expected):
    torch.testing.assert_close(quantize_weight(W, 1.0, bits), torch.tensor(expected).float())


@pytest.mark.parametrize(
    ("bits", "signed", "expected"),
    [
        (1, False, [0, 0, 0, 0, 1.5, 1.5, 1.5]),
        (2, False, [0, 0, 0.5, 0.5, 1, 1.5, 1.5]),
        (3, True, [-0.5, 0, 0.5, 0.5, 1, 1.5, 1.5]),
    ],
)
def test_activations_take_the_values_of_their_grid(bits, signed, expected):
    torch.testing.assert_close(quantize_activation(X, 1.5, bits, signed), torch.tensor(expected))


def test_rounding_is_half_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, 3.5])
    assert quantize_activation(x, 15.0, 4).tolist() == [0, 2, 2, 4]
    assert quantize_weight(-x, 7.0, 4).tolist() == [0, -2, -2, -4]


def test_one_bit_weights_are_the_sign_times_the_mean_magnitude():
    w = torch.tensor([-2.0, 0.0, 1.0, 5.0])
    assert quantize_weight(w, 1.0, 1).tolist() == [-2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("bits", range(1, 9))
def test_eight_bits_or_fewer_never_give_more_levels_than_codes(bits):
    x = torch.linspace(-2, 2, 100_001)
    assert len(quantize_weight(x, 1.0, bits).unique()) == max(2, 2**bits - 1)
    assert len(quantize_activation(x, 1.0, bits).unique()) == 2**bits
    if bits > 1:
        assert len(quantize_activation(x, 1.0, bits, signed=True).unique()) == 2**bits - 1


def test_signed_activations_of_one_bit_are_refused():
    with pytest.raises(InputError, match="at least 2 bits"):
        quantize_activation(X, 1.0, 1, signed=True)


@pytest.mark.parametrize(("clip", "bits"), [(1.0, 0), (1.0, 9), (0.0, 4), (float("nan"), 4)])
def test_widths_and_clips_out_of_range_are_refused(clip, bits):
    with pytest.raises(InputError):
        quantize_weight(W, clip, bits)
    with pytest.raises(InputError):
        quantize_activation(X, clip, bits)


floats = st.floats(-100, 100, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 40), elements=floats)


@settings(max_examples=60, deadline=None)
@given(arrays, st.floats(0.015625, 64, width=32), st.integers(2, 8))
def test_quantization_is_idempotent_odd_monotone_and_within_half_a_step(values, clip, bits):
    x = torch.from_numpy(np.sort(values))
    q = quantize_weight(x, clip, bits)
    step = clip / (2 ** (bits - 1) - 1)
    assert torch.equal(quantize_weight(q, clip, bits), q)
    assert torch.equal(quantize_weight(-x, clip, bits), -q)
    assert bool((q.diff() >= 0).all())
    assert bool(((q - x.clamp(-clip, clip)).abs() <= step * (0.5 + 1e-4)).all())
    a = quantize_activation(x, clip, bits)
    assert torch.equal(quantize_activation(a, clip, bits), a)
    assert bool((a.diff() >= 0).all())
    assert float(a.min()) >= 0
    assert float(a.max()) <= clip * (1 + 1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_agree_with_the_fake_quantization_of_torch(bits):
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(bits))
    n = 2 ** (bits - 1) - 1
    # a step that is a power of two: division and multiplication by its inverse then agree
    for step in (0.25, 0.0625):
        theirs = torch.fake_quantize_per_tensor_affine(x, step, 0, -n, n)
        assert torch.equal(quantize_weight(x, step * n, bits), theirs)
        top = 2**bits - 1
        theirs = torch.fake_quantize_per_tensor_affine(x, step, 0, 0, top)
        assert torch.equal(quantize_activation(x, step * top, bits), theirs)


# --- fake quantizers: gradients ---------------------------------------------------------------


def gradient_by_element(function, x: Tensor, upstream: Tensor) -> Tensor:
    out = []
    for value, g in zip(x, upstream, strict=True):
        leaf = value.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf.reshape(1)).sum() * g, leaf)
        out.append(grad)
    return torch.stack(out)


def ste(x: Tensor, quantized: Tensor) -> Tensor:
    """Value of `quantized`, gradient of `x`, written with plain autograd."""
    return x + (quantized - x).detach()


@pytest.mark.parametrize("bits", range(1, 9))
def test_gradients_equal_the_closed_form(bits):
    g = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(64, generator=g) * 2, torch.randn(64, generator=g)
    cases = [
        (lambda v: quantize_weight(v, 1.5, bits), torch.ones(64)),
        (lambda v: quantize_activation(v, 1.5, bits), ((x > 0) & (x < 1.5)).float()),
        (lambda v: quantize_activation(v, 1.5, bits, gradient=Gradient.STE), torch.ones(64)),
        (
            lambda v: quantize_weight(v, 1.5, max(bits, 2), Gradient.STE_CLIP),
            (x.abs() < 1.5).float(),
        ),
    ]
    if bits > 1:
        inside = (x.abs() < 1.5).float()
        cases.append((lambda v: quantize_activation(v, 1.5, bits, signed=True), inside))
    for function, mask in cases:
        leaf = x.clone().requires_grad_()
        function(leaf).backward(upstream)
        assert torch.equal(leaf.grad, upstream * mask)
        assert torch.equal(gradient_by_element(function, x, upstream), upstream * mask)


def test_gradients_of_a_layer_equal_plain_autograd_with_a_straight_through_estimate():
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(8, 5, generator=g), torch.randn(3, 5, generator=g)
    grads = []
    for fused in (True, False):
        xl, wl = x.clone().requires_grad_(), w.clone().requires_grad_()
        if fused:
            y = F.linear(quantize_activation(xl, 1.2, 3), quantize_weight(wl, 0.8, 3))
        else:
            clipped = xl.clamp(0, 1.2)
            xq = ste(clipped, quantize_activation(x, 1.2, 3))
            y = F.linear(xq, ste(wl, quantize_weight(w, 0.8, 3)))
        y.square().sum().backward()
        grads += [xl.grad, wl.grad]
    torch.testing.assert_close(grads[0], grads[2])
    torch.testing.assert_close(grads[1], grads[3])


def test_quantizers_leave_their_argument_alone():
    for grad in (False, True):
        x = X.clone().requires_grad_(grad)
        before = x.detach().clone()
        quantize_activation(x, 1.0, 2)
        quantize_activation(x, 1.0, 3, signed=True)
        quantize_weight(x, 1.0, 2)
        quantize_weight(x, 1.0, 1)
        assert torch.equal(x.detach(), before)


# --- calibration ------------------------------------------------------------------------------

QUANTILES = (np.arange(1 << 19) + 0.5) / (1 << 19)
GAUSSIAN = [1.224, 1.952, 2.474, 2.899, 3.270, 3.607, 3.921]
LAPLACE = [1.414, 2.465, 3.408, 4.312, 5.203, 6.094, 6.988]


@pytest.mark.parametrize(
    ("values", "oracle"),
    [(norm.ppf(QUANTILES), GAUSSIAN), (laplace.ppf(QUANTILES, scale=2**-0.5), LAPLACE)],
    ids=["gaussian", "laplace"],
)
def test_least_squares_clips_match_the_closed_forms(values, oracle):
    np.testing.assert_allclose(clip_table(values, True).clip[1:], oracle, rtol=0.01)
    # half the distribution and no sign bit: the same table, one bit earlier
    unsigned = clip_table(np.maximum(values, 0), False)
    np.testing.assert_allclose(unsigned.clip[:7], oracle, rtol=0.01)
    np.testing.assert_allclose(clip_table(values, True).clip[0], np.abs(values).mean())


def gaussian_200k() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(200_000)


def test_the_rule_of_haq_finds_its_published_thresholds_below_five_bits_and_the_maximum_above():
    values = gaussian_200k()
    clip = clip_table(values, True, "haq-kl").clip
    np.testing.assert_allclose(clip[1:4], [1.48, 2.11, 2.65], rtol=0.01)
    np.testing.assert_allclose(clip[4:], np.abs(values).max())


def haq_threshold_by_loop(data: np.ndarray, points: int) -> float:
    """Score every cut one at a time with np.interp."""
    magnitude = np.abs(data)
    bins = int(np.ceil(np.sqrt(data.size)))
    histogram, edges = np.histogram(magnitude, bins=bins, range=(0, magnitude.max()))
    whole = np.cumsum(histogram) / data.size
    best = (np.inf, 0.0)
    for cut in range(points + 1, bins + 1):
        image = whole.copy()
        image[cut - 1 :] = 1
        fine, coarse = np.linspace(0, 1, cut), np.linspace(0, 1, points)
        image[:cut] = np.interp(fine, coarse, np.interp(coarse, fine, image[:cut]))
        score = float(np.sum((whole - image) * np.log2(whole / image)))
        best = min(best, (score, (cut + 0.5) * edges[1]))
    return best[1]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_vectorised_rule_of_haq_equals_a_loop_over_thresholds(bits):
    values = np.random.default_rng(bits).laplace(size=20_000)
    expected = haq_threshold_by_loop(values, 2 ** (bits - 1))
    assert clip_table(values, True, "haq-kl").clip[bits - 1] == pytest.approx(expected, rel=1e-9)


def test_haq_caps_activations_at_six_and_counts_the_sign_as_a_bit():
    values = 4 * gaussian_200k()
    half = clip_table(np.maximum(values, 0), False, "haq-kl", activations=True).clip
    assert half.max() == 6
    small = values / 16
    signed = clip_table(small, True, "haq-kl", activations=True).clip
    as_weights = clip_table(small, True, "haq-kl").clip
    np.testing.assert_allclose(signed[2:5], as_weights[1:4])  # searched up to 5 bits
    np.testing.assert_allclose(signed[5:], np.abs(small).max())


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", ["normal", "laplace", "standard_t", "sparse", "outlier"])
def test_error_never_grows_with_bits_and_is_what_the_quantizer_does(signed, kind):
    rng = np.random.default_rng(3)
    values = {
        "normal": lambda: rng.standard_normal(5000),
        "laplace": lambda: rng.laplace(size=5000),
        "standard_t": lambda: rng.standard_t(2, size=5000),
        "sparse": lambda: rng.standard_normal(5000) * (rng.uniform(size=5000) < 0.02),
        "outlier": lambda: np.append(rng.standard_normal(5000), 1e4),
    }[kind]()
    table = clip_table(values, signed)
    assert bool((np.diff(table.mse) <= 1e-9 * table.mse[:-1]).all())
    x = torch.from_numpy(values)
    for b in range(1, 9):
        clip = float(table.clip[b - 1])
        q = quantize_weight(x, clip, b) if signed else quantize_activation(x, clip, b)
        assert table.mse[b - 1] == pytest.approx(float((q - x).square().mean()), rel=1e-6)


@pytest.mark.parametrize("kind", ["normal", "laplace", "standard_t"])
def test_no_other_clip_leaves_a_visibly_smaller_error(kind):
    rng = np.random.default_rng(4)
    draw = {"standard_t": lambda: rng.standard_t(2, size=3000)}
    values = draw.get(kind, lambda: getattr(rng, kind)(size=3000))()
    table, x = clip_table(values, True), torch.from_numpy(values)
    for b in (2, 4, 8):
        clips = np.geomspace(0.02, 1, 150) * np.abs(values).max()
        best = min(float((quantize_weight(x, c, b) - x).square().mean()) for c in clips)
        assert table.mse[b - 1] <= 1.01 * best


def test_max_clips_nothing():
    values = gaussian_200k()
    assert set(clip_table(values, True, "max").clip[1:]) == {np.abs(values).max()}


@pytest.mark.parametrize("rule", ["mse", "haq-kl", "max"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("values", [np.zeros(10), np.full(10, 0.3), np.full(10, -0.3), [1e-40]])
def test_degenerate_tensors_have_usable_clips(rule, signed, values):
    table = clip_table(values, signed, rule, activations=True)
    assert np.isfinite(table.clip).all()
    assert (table.clip > 0).all()
    x = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    for b in range(1, 9):
        assert torch.isfinite(quantize_activation(x, float(table.clip[b - 1]), b)).all()
    if rule != "haq-kl" and (signed or x[0] >= 0):
        np.testing.assert_allclose(table.mse, 0, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(bad):
    with pytest.raises(InputError, match="weights of 'conv1'"):
        clip_table([1.0, bad], True, name="weights of 'conv1'")


def test_empty_tensors_and_unknown_rules_are_refused():
    with pytest.raises(InputError, match="no values"):
        clip_table([], True)
    with pytest.raises(InputError, match="mse"):
        clip_table([1.0], True, "msee")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**7), st.integers(2, 10**5))
def test_subsampling_keeps_at_most_the_limit_and_visits_all_columns(size, limit):
    stride = sampling_stride(size, limit)
    assert -(-size // stride) <= limit
    assert stride == 1 or np.gcd(stride, size) == 1


# --- the network ------------------------------------------------------------------------------


class Residual(nn.Module):
    """Convolutions, a depthwise one, two residual branches, an in-place ReLU, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn0(self.stem(x)))
        x = x + self.bn1(self.depthwise(x))  # x is used after the quantized layer: linear sum
        x = x + F.relu_(self.expand(x))
        return self.fc(self.drop(F.relu(x).mean((2, 3))))


TABLE = LayerTable(
    "residual",
    (
        Layer("stem", "conv", 3, 8, (3, 3), in_size=(8, 8), out_size=(8, 8), signed_input=True),
        Layer("depthwise", "depthwise", 8, 8, (3, 3), groups=8, in_size=(8, 8), out_size=(8, 8)),
        Layer("expand", "conv", 8, 8, in_size=(8, 8), out_size=(8, 8), signed_input=True),
        Layer("fc", "linear", 8, 5),
    ),
    (3, 8, 8),
)
POLICY = np.array([[8, 8], [4, 3], [3, 4], [2, 1]])


def images(count: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def float_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Residual()
        net.train()
        net.drop.eval()
        for seed in range(3):
            net(images(seed=seed))
        for norm_ in (net.bn0, net.bn1):
            nn.init.uniform_(norm_.weight, 0.5, 1.5)
            nn.init.normal_(norm_.bias, std=0.3)
        return net.eval()


def quantized(net: nn.Module, **options) -> QuantizedNetwork:
    return QuantizedNetwork(net, TABLE, calibration_images=images(), **options)


def train(network: QuantizedNetwork, steps: int = 3, **options) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, **options)
    labels = torch.arange(48) % 5
    network.train()
    with torch.random.fork_rng(devices=[]):
        for _ in range(steps):
            loss = F.cross_entropy(network(images()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            network.after_step()
    network.eval()


@torch.no_grad()
def outputs(network: nn.Module, seed: int = 9) -> Tensor:
    return network(images(seed=seed))


def reference(net: Residual, network: QuantizedNetwork, bits: np.ndarray, x: Tensor) -> Tensor:
    """The same forward pass written with the functions, without any in-place work."""
    q = {layer.name: (part.slot.quantizer, *bits[i]) for i, (layer, part) in enumerate(
        zip(TABLE, network._layers, strict=True)
    )}  # fmt: skip

    def operands(name: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
        quantizer, w_bits, a_bits = q[name]
        layer = TABLE[TABLE.names.index(name)]
        weight = getattr(net, name).weight
        return (
            quantize_activation(
                inputs, quantizer.activation_clip[a_bits - 1], a_bits, layer.signed_input
            ),
            quantize_weight(weight, quantizer.weight_clip[w_bits - 1], w_bits),
        )

    x = F.relu(net.bn0(F.conv2d(*operands("stem", x), padding=1)))
    x = x + net.bn1(F.conv2d(*operands("depthwise", x), padding=1, groups=8))
    x = x + F.relu(F.conv2d(*operands("expand", x), net.expand.bias))
    return F.linear(*operands("fc", F.relu(x).mean((2, 3))), net.fc.bias)


def test_listing_quantizers_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from haq_env.quantization import QUANTIZERS; print(*QUANTIZERS);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["linear", "kmeans", "lsq"] == list(QUANTIZERS)


def test_float_mode_computes_what_the_float_network_does(float_net):
    network = quantized(float_net)
    torch.testing.assert_close(outputs(network), outputs(float_net))
    network.set_policy(POLICY)
    assert not torch.allclose(outputs(network), outputs(float_net))
    network.set_policy(None)
    assert network.bits is None
    torch.testing.assert_close(outputs(network), outputs(float_net))


def test_residual_networks_compute_what_the_quantizers_say(float_net):
    network = quantized(float_net)
    for bits in (POLICY, np.full((4, 2), 8), np.full((4, 2), 2)):
        network.set_policy(bits)
        with torch.no_grad():
            expected = reference(float_net, network, bits, images(seed=9))
        torch.testing.assert_close(outputs(network), expected, rtol=1e-4, atol=1e-5)
        with torch.enable_grad():
            torch.testing.assert_close(
                network(images(seed=9)).detach(), expected, rtol=1e-4, atol=1e-5
            )


def test_gradients_of_the_network_are_those_of_the_written_out_pass(float_net):
    network = quantized(float_net)
    network.set_policy(POLICY)
    x = images(seed=9)
    network(x).square().sum().backward()
    ours = {name: p.grad.clone() for name, p in network.module.named_parameters()}
    float_net.zero_grad()
    reference(float_net, network, POLICY, x).square().sum().backward()
    for name, parameter in float_net.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-4)
    float_net.zero_grad()


def test_switching_there_and_back_is_bit_identical_and_leaves_the_state_dict_alone(float_net):
    network = quantized(float_net)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    network.set_policy(POLICY)
    first = outputs(network)
    network.set_policy(np.full((4, 2), 5))
    assert not torch.equal(outputs(network), first)
    network.set_policy(POLICY)
    assert torch.equal(outputs(network), first)
    after = network.state_dict()
    assert list(after) == list(float_net.state_dict())
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_eight_bits_are_close_to_float_and_fewer_bits_are_farther(float_net):
    network = quantized(float_net)
    expected, errors = outputs(float_net), []
    for bits in (8, 6, 4, 2):
        network.set_policy(np.full((4, 2), bits))
        errors.append(float((outputs(network) - expected).abs().mean()))
    assert errors == sorted(errors)
    assert errors[0] < 0.02 * float(expected.abs().mean())


def test_policies_are_checked(float_net):
    network = quantized(float_net)
    for bad in ([[4, 4]] * 3, [[4, 9]] * 4, [[0, 4]] * 4, [[4.5, 4]] * 4, [[[4, 4]] * 4]):
        with pytest.raises(InputError):
            network.set_policy(bad)
    with pytest.raises(InputError, match=r"'expand'.*signed"):
        network.set_policy([[4, 4], [4, 4], [4, 1], [4, 4]])
    assert network.bits is None


def test_a_network_keeps_its_own_copy_of_a_policy(float_net):
    network = quantized(float_net)
    bits = POLICY.copy()
    network.set_policy(bits)
    bits[:] = 1
    assert np.array_equal(network.bits, POLICY)


@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
@pytest.mark.parametrize("foreach", [False, True])
def test_restore_is_exact_after_training(float_net, quantizer, foreach):
    network = quantized(float_net, quantizer=quantizer)
    network.set_policy(POLICY)
    before = outputs(network)
    addresses = [p.data_ptr() for p in network.parameters()]
    train(network, foreach=foreach)
    network.recalibrate_batchnorm(images())
    assert not torch.equal(outputs(network), before)
    network.restore()
    assert [p.data_ptr() for p in network.parameters()] == addresses
    assert torch.equal(outputs(network), before)
    for name, tensor in float_net.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_cached_weights_give_the_same_bits_as_fresh_ones(float_net, quantizer, options):
    network, fresh = (quantized(float_net, quantizer=quantizer) for _ in range(2))
    fresh._layers[0].slot.cache.limit = 0
    for bits in (POLICY, np.full((4, 2), 3), POLICY):
        for one in (network, fresh):
            one.set_policy(bits)
        for _ in range(2):
            fresh.weights_changed()  # nothing is remembered here
            assert torch.equal(outputs(network), outputs(fresh))
        with torch.enable_grad():
            assert torch.equal(network(images(seed=9)), outputs(fresh))
        for one in (network, fresh):
            train(one, **options)
        fresh.weights_changed()
        assert torch.equal(outputs(network), outputs(fresh))  # never the pretrained weights
        for one in (network, fresh):
            one.restore()


def test_the_cache_keeps_within_its_limit(float_net):
    limit = 4 * 1000
    network = quantized(float_net, cache_bytes=limit)
    cache = network._layers[0].slot.cache
    for bits in range(2, 9):
        network.set_policy(np.full((4, 2), bits))
        outputs(network)
        assert cache.size <= limit
    assert len(cache) > 0


def test_changes_through_data_are_seen_once_they_are_announced(float_net):
    network = quantized(float_net)
    network.set_policy(POLICY)
    before = outputs(network)
    network.module.fc.weight.data.mul_(-1)
    network.weights_changed()
    assert not torch.equal(outputs(network), before)


def test_batch_norm_statistics_equal_a_computation_by_hand(float_net):
    network = quantized(float_net)
    network.set_policy(POLICY)
    counters = [int(network.module.bn0.num_batches_tracked)]
    modes = [m.training for m in network.modules()]
    network.recalibrate_batchnorm(images(40), batch_size=16)  # three batches: 14, 13, 13
    slot = network._layers[0].slot
    means, variances = [], []
    for batch in (images(40)[:14], images(40)[14:27], images(40)[27:]):
        y = F.conv2d(
            quantize_activation(batch, slot.quantizer.activation_clip[7], 8, signed=True),
            quantize_weight(float_net.stem.weight, slot.quantizer.weight_clip[7], 8),
            padding=1,
        )
        means.append(y.mean((0, 2, 3)))
        variances.append(y.transpose(0, 1).flatten(1).var(1, correction=1))
    bn = network.module.bn0
    torch.testing.assert_close(bn.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(bn.running_var, torch.stack(variances).mean(0))
    assert [int(bn.num_batches_tracked)] == counters
    assert bn.momentum == float_net.bn0.momentum
    assert [m.training for m in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())


def test_batch_norm_recalibration_leaves_weights_modes_and_dropout_alone(float_net):
    network = quantized(float_net)
    network.train()
    network.module.bn1.eval()
    modes = [m.training for m in network.modules()]
    weights = [p.detach().clone() for p in network.parameters()]
    stats = []
    for _ in range(2):
        recalibrate_batchnorm(network, images(), 20)
        stats.append(network.module.bn1.running_var.clone())
    assert torch.equal(*stats)  # dropout would draw other numbers
    assert [m.training for m in network.modules()] == modes
    for weight, parameter in zip(weights, network.parameters(), strict=True):
        assert torch.equal(weight, parameter)
    with pytest.raises(InputError):
        network.recalibrate_batchnorm(images()[:0])
    with pytest.raises(InputError):
        network.recalibrate_batchnorm(images(), batch_size=0)


@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
def test_global_random_generators_are_not_touched(float_net, quantizer):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    network = quantized(float_net, quantizer=quantizer)
    network.set_policy(POLICY)
    outputs(network)
    network.recalibrate_batchnorm(images())
    network.after_step()
    network.restore()
    network.clone()
    assert torch.equal(torch.get_rng_state(), torch_state)
    after = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(after[1], numpy_state[1])
    assert after[2:] == numpy_state[2:]


def test_the_float_module_is_not_changed(float_net):
    before = {name: t.clone() for name, t in float_net.state_dict().items()}
    network = quantized(float_net)
    network.set_policy(POLICY)
    train(network)
    assert type(float_net.stem) is nn.Conv2d
    assert not float_net.stem._forward_pre_hooks
    assert not network.module.stem._forward_pre_hooks
    assert all(torch.equal(t, before[name]) for name, t in float_net.state_dict().items())


@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
@pytest.mark.parametrize("how", ["clone", "pickle"])
def test_copies_are_equal_and_independent(float_net, quantizer, how):
    network = quantized(float_net, quantizer=quantizer)
    network.set_policy(POLICY)
    first = outputs(network)
    train(network)
    trained = outputs(network)
    copy_ = network.clone() if how == "clone" else pickle.loads(pickle.dumps(network))
    assert torch.equal(outputs(copy_), trained)
    train(copy_)
    assert torch.equal(outputs(network), trained)
    copy_.restore()
    assert torch.equal(outputs(copy_), first)
    assert len({id(layer.slot.cache) for layer in copy_._layers}) == 1
    again = copy_.clone()
    again.set_policy(np.full((4, 2), 2))
    again.set_policy(POLICY)
    assert torch.equal(outputs(again), first)
    assert again._layers[0].slot.pretrained_version >= 0


@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
def test_inference_mode_and_training_can_alternate(float_net, quantizer):
    plain = quantized(float_net, quantizer=quantizer)
    with torch.inference_mode():
        network = quantized(float_net, quantizer=quantizer)
    for one, mode in ((plain, torch.no_grad), (network, torch.inference_mode)):
        one.set_policy(POLICY)
        with mode():
            one(images())
            one.recalibrate_batchnorm(images())
        train(one)
        with mode():
            one(images())
        train(one)
    assert torch.equal(outputs(plain), outputs(network))
    with torch.inference_mode():
        copy_ = network.clone()
        network.restore()
    train(copy_)
    plain.restore()
    assert torch.equal(outputs(plain), outputs(network))


def test_conversion_to_another_type_keeps_the_network_consistent(float_net):
    network = quantized(float_net)
    network.set_policy(POLICY)
    single = outputs(network)
    network.double()
    with torch.no_grad():
        double = network(images(seed=9).double())
    assert double.dtype == torch.float64
    # a value next to a rounding border may fall on the other side of it
    assert float((double - single).abs().median()) < 1e-5
    train_weight = network.module.fc.weight
    with torch.no_grad():
        train_weight.add_(1)
    network.float()
    network.restore()
    assert torch.equal(outputs(network), single)


def test_calibration_errors_are_those_of_the_float_inputs(float_net):
    network = quantized(float_net)
    seen: list[Tensor] = []
    handle = float_net.expand.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outputs(float_net, seed=0)
    handle.remove()
    quantizer = network._layers[2].slot.quantizer
    assert network.errors.weights.shape == network.errors.activations.shape == (4, 8)
    for bits in (2, 5, 8):
        q = quantize_activation(seen[0], quantizer.activation_clip[bits - 1], bits, signed=True)
        mse = float((q - seen[0]).square().mean())
        assert network.errors.activations[2, bits - 1] == pytest.approx(mse, rel=1e-3)
    assert np.isinf(network.errors.activations[:, 0]).tolist() == [True, False, True, False]


def test_calibration_does_not_depend_on_the_mode_of_the_float_network(float_net):
    clips = []
    for mode in (True, False):
        float_net.train(mode)
        network = quantized(float_net)
        assert not network.training
        clips.append([layer.slot.quantizer.activation_clip for layer in network._layers])
    assert clips[0] == clips[1]


class Unreached(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn0(self.stem(x))).mean((2, 3)))


def test_unusable_networks_are_refused_by_name(float_net):
    def table(*layers: Layer) -> LayerTable:
        return LayerTable("net", layers)

    def build(net: nn.Module, layers: LayerTable, **options) -> None:
        QuantizedNetwork(net, layers, calibration_images=images(), **options)

    stem = TABLE[0]
    with pytest.raises(InputError, match="no layer 'nowhere'"):
        build(float_net, table(Layer("nowhere", "conv", 3, 8)))
    with pytest.raises(InputError, match=r"'bn0'.*BatchNorm2d"):
        build(float_net, table(Layer("bn0", "conv", 8, 8)))
    with pytest.raises(InputError, match="'depthwise' is not reached"):
        build(Unreached(), TABLE)
    with pytest.raises(InputError, match=r"'stem'.*non-negative"):
        build(float_net, table(Layer("stem", "conv", 3, 8, (3, 3))))
    with pytest.raises(InputError, match=r"'stem' has 216 weights, and 432 in the layer table"):
        build(float_net, table(Layer("stem", "conv", 3, 16, (3, 3))))
    broken = Residual()
    broken.stem.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="weights of 'stem'"):
        build(broken, table(stem))
    with pytest.raises(InputError, match="'linear'"):
        build(float_net, TABLE, quantizer="liner")
    with pytest.raises(InputError, match="mse"):
        build(float_net, TABLE, clip="mes")


def test_nan_images_are_refused_by_layer(float_net):
    bad = images()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="inputs of 'stem'"):
        QuantizedNetwork(float_net, TABLE, calibration_images=bad)


@pytest.mark.parametrize("clip", ["mse", "haq-kl", "max"])
def test_every_clip_rule_builds_a_usable_network(float_net, clip):
    network = quantized(float_net, clip=clip)
    network.set_policy(POLICY)
    assert torch.isfinite(outputs(network)).all()


# -- networks that people bring ----------------------------------------------------------------


class Counting(nn.Linear):
    """A layer with something of its own beside what nn.Linear computes."""

    def norm(self) -> Tensor:
        return self.weight.detach().norm()


class Standardised(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / weight.std(), bias)


def with_layer(name: str, layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = Residual().eval()
    setattr(net, name, layer)
    return net


def test_what_a_subclass_adds_to_a_layer_stays():
    torch.manual_seed(1)
    network = quantized(with_layer("fc", Counting(8, 5)))
    network.set_policy(POLICY)
    assert torch.equal(network.module.fc.norm(), network.module.fc.weight.detach().norm())
    assert torch.equal(outputs(network.clone()), outputs(network))


class Marker(nn.Conv2d):
    """Is nothing more, but its network asks for it."""

    def __repr__(self) -> str:
        return "Marker()"


def test_layers_stay_of_their_own_class_in_copies_and_pickles_too():
    network = quantized(with_layer("stem", Marker(3, 8, 3, padding=1)))
    network.set_policy(POLICY)
    for twin in (network, network.clone(), pickle.loads(pickle.dumps(network))):
        assert isinstance(twin.module.stem, Marker)
        assert torch.equal(outputs(twin), outputs(network))
    other = network.clone()
    other.set_policy(np.full_like(POLICY, 8))
    assert not torch.equal(outputs(other), outputs(network))


def test_a_subclass_that_computes_something_else_is_refused():
    with pytest.raises(InputError, match="Standardised, which has its own _conv_forward"):
        quantized(with_layer("stem", Standardised(3, 8, 3, padding=1)))


def test_an_input_given_by_name_is_quantized_like_any_other():
    class Named(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu_(self.bn0(self.stem(input=x)))
            x = x + self.bn1(self.depthwise(x))
            x = x + F.relu_(self.expand(input=x))
            return self.fc(input=self.drop(F.relu(x).mean((2, 3))))

    torch.manual_seed(0)
    plain, named = Residual().eval(), Named().eval()
    named.load_state_dict(plain.state_dict())
    one, other = quantized(plain), quantized(named)
    for network in (one, other):
        network.set_policy(POLICY)
    assert torch.equal(outputs(one), outputs(other))


def test_tensors_of_five_dimensions_may_be_in_a_network():
    net = with_layer("more", nn.Conv3d(1, 1, 1))
    net.register_buffer("grid", torch.zeros(1, 1, 1, 1, 8))
    network = quantized(net)
    network.set_policy(POLICY)
    assert outputs(network).shape == (48, 5)


def test_the_largest_of_a_large_tensor_and_a_nan_in_it_are_seen():
    values = np.random.default_rng(0).normal(size=(1 << 20) + 7).astype(np.float32)
    values[1] = 50.0  # between the sampled ones
    assert clip_table(values, signed=True, rule="max").clip[7] == 50.0
    assert clip_table(values, signed=True, rule="haq-kl").clip[7] == 50.0
    values[1] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        clip_table(values, signed=True)
