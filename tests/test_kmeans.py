"""k-means weight sharing: clusters close to the optimum, and finetuning that keeps them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from haq_env.errors import InputError
from haq_env.layers import Layer, LayerTable
from haq_env.quantization.clustering import SortedValues, kmeans
from haq_env.quantization.network import QuantizedNetwork

BITS = range(1, 9)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another
    yield
    torch.set_num_threads(threads)


def optimum(values: np.ndarray, clusters: int) -> np.ndarray:
    """Least sums of squares for 1 to `clusters` clusters, by the dense dynamic program."""
    x = np.sort(values.astype(np.float64))
    x -= x.mean()
    n = x.size
    sums = np.concatenate(([0.0], np.cumsum(x)))
    squares = np.concatenate(([0.0], np.cumsum(x * x)))
    start, end = np.arange(n + 1)[:, None], np.arange(n + 1)
    length = np.maximum(end - start, 1)
    cost = (squares - squares[:, None]) - (sums - sums[:, None]) ** 2 / length
    cost = np.where(end > start, np.maximum(cost, 0), np.inf)
    best, out = np.full(n + 1, np.inf), []
    best[0] = 0
    for _ in range(clusters):
        best = (best[:, None] + cost).min(axis=0)
        out.append(best[n])
    return np.array(out)


def draw(kind: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return {
        "normal": lambda: rng.standard_normal(n),
        "laplace": lambda: rng.laplace(size=n),
        "student": lambda: rng.standard_t(3, size=n),
        "two groups": lambda: np.concatenate((rng.normal(-50, 1, n // 2), rng.normal(50, 0.1, n))),
        "mostly zero": lambda: rng.standard_normal(n) * (rng.uniform(size=n) < 0.3),
        "outliers": lambda: rng.standard_cauchy(n),
        "offset": lambda: 1e4 + rng.standard_normal(n),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    ["normal", "laplace", "student", "two groups", "mostly zero", "outliers", "offset"],
)
def test_the_error_is_within_three_percent_of_the_exact_optimum(kind):
    values = draw(kind, 700 if kind == "two groups" else 1000)
    exact = optimum(values, 64)
    for bits in range(1, 7):
        book = kmeans(values, bits)
        error = float(((book.centroids[book.assign(values)] - values) ** 2).sum())
        assert book.mse * values.size == pytest.approx(error, rel=1e-6)
        assert error <= 1.03 * exact[2**bits - 1]


def test_the_error_is_within_three_percent_of_the_optimum_for_seven_and_eight_bits():
    values = draw("normal", 800)
    exact = optimum(values, 256)
    for bits in (7, 8):
        assert kmeans(values, bits).mse * values.size <= 1.03 * exact[2**bits - 1]


def test_the_small_example_is_solved_exactly():
    values = [0, 0.1, 0.2, 1, 1.1, 5]
    book = kmeans(values, 1)
    np.testing.assert_allclose(book.centroids, [0.48, 5])
    assert book.mse * 6 == pytest.approx(1.108)
    assert kmeans(values, 2).mse * 6 < 0.025
    assert optimum(np.array(values), 3)[2] == pytest.approx(0.025)


def test_a_gaussian_gets_the_centroids_of_lloyd_and_max():
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    sorted_ = SortedValues(values)
    two, four = sorted_.cluster(1), sorted_.cluster(2)
    np.testing.assert_allclose(two.centroids, [-0.798, 0.798], atol=0.003)
    assert two.mse == pytest.approx(0.3634, rel=0.005)
    np.testing.assert_allclose(four.centroids, [-1.510, -0.453, 0.453, 1.510], atol=0.006)
    assert four.mse == pytest.approx(0.1175, rel=0.005)
    # many clusters: the high-resolution limit sqrt(3) pi / (2 k^2) of Panter and Dite
    assert sorted_.cluster(8).mse == pytest.approx(np.sqrt(3) * np.pi / 2 / 256**2, rel=0.03)


@pytest.mark.parametrize("distinct", [1, 2, 3, 5, 200])
def test_fewer_distinct_values_than_clusters_are_kept_exactly(distinct):
    values = np.random.default_rng(1).integers(0, distinct, 5000).astype(np.float32) / 7
    levels = np.unique(values)
    for bits in BITS:
        book = kmeans(values, bits)
        assert len(book.centroids) == min(len(levels), 2**bits)
        assert len(book.thresholds) == len(book.centroids) - 1
        if len(levels) <= 2**bits:
            np.testing.assert_allclose(book.centroids[book.assign(values)], values, atol=1e-7)
            assert book.mse == pytest.approx(0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 400), elements=st.floats(-1e3, 1e3, width=32)),
    st.integers(1, 8),
)
def test_clusters_are_ordered_non_empty_and_hold_their_mean(values, bits):
    book = kmeans(values, bits)
    members = book.assign(values)
    count = len(book.centroids)
    assert 1 <= count <= 2**bits
    assert np.array_equal(np.unique(members), np.arange(count))
    assert (np.diff(book.centroids) >= 0).all()
    means = np.array([values[members == i].mean(dtype=np.float64) for i in range(count)])
    np.testing.assert_allclose(book.centroids, means, rtol=1e-6, atol=1e-6)
    # a value's own centroid is never farther than half the range
    assert book.mse <= values.astype(np.float64).var() * (1 + 1e-9) + 1e-9


def test_the_error_never_grows_with_bits_and_the_answer_is_always_the_same():
    values = draw("student", 20_000)
    books = [kmeans(values, bits) for bits in BITS]
    assert (np.diff([book.mse for book in books]) <= 0).all()
    shuffled = np.random.default_rng(2).permutation(values)
    for bits, book in zip(BITS, books, strict=True):
        again = kmeans(shuffled, bits)
        assert np.array_equal(again.thresholds, book.thresholds)
        np.testing.assert_allclose(again.centroids, book.centroids, rtol=1e-12)


def test_bad_values_and_widths_are_refused():
    with pytest.raises(InputError, match="weights of 'fc'"):
        kmeans([1.0, np.nan], 2, name="weights of 'fc'")
    with pytest.raises(InputError, match="no values"):
        kmeans([], 2)
    for bits in (0, 9):
        with pytest.raises(InputError):
            kmeans([1.0, 2.0], bits)


# --- in a network -----------------------------------------------------------------------------


def network(centroid_update: str = "haq", weights: Tensor | None = None) -> QuantizedNetwork:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 1, bias=False))
    if weights is None:
        net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4))
        layers = (
            Layer("0", "linear", 30, 20, signed_input=True),
            Layer("2", "linear", 20, 4),
        )
    else:
        net[0].weight.data = weights.view(1, 5).clone()
        layers = (Layer("0", "linear", 5, 1, signed_input=True),)
    inputs = layers[0].in_channels
    return QuantizedNetwork(
        net,
        LayerTable("mlp", layers, (inputs,)),
        quantizer="kmeans",
        centroid_update=centroid_update,
        calibration_images=torch.randn(16, inputs, generator=generator),
    )


def test_weights_become_centroids_and_activation_bits_are_ignored():
    net = network()
    x = torch.randn(8, 30, generator=torch.Generator().manual_seed(1))
    net.set_policy([[2, 1], [3, 1]])  # one bit for signed inputs: no matter here
    out = net(x)
    weight = net.module[0].slot.quantized(net.module[0].weight)
    assert len(weight.unique()) == 4
    net.set_policy([[2, 8], [3, 8]])
    assert torch.equal(net(x), out)
    assert (net.errors.activations == 0).all()
    expected = float((weight - net.module[0].weight).detach().square().mean())
    assert net.errors.weights[0, 1] == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_a_shared_weight_goes_to_the_float_weight():
    net = network()
    net.set_policy([[2, 8], [2, 8]])
    x = torch.randn(8, 30, generator=torch.Generator().manual_seed(1))
    net(x).square().sum().backward()
    first, second = net.module[0], net.module[2]
    leaf = [layer.slot.quantized(layer.weight).detach().requires_grad_() for layer in
            (first, second)]  # fmt: skip
    hidden = torch.relu(torch.nn.functional.linear(x, leaf[0], first.bias))
    torch.nn.functional.linear(hidden, leaf[1], second.bias).square().sum().backward()
    torch.testing.assert_close(first.weight.grad, leaf[0].grad)
    torch.testing.assert_close(second.weight.grad, leaf[1].grad)


@pytest.mark.parametrize(
    ("update", "moves"), [("haq", (-0.02, 0.015)), ("deep-compression", (-0.06, 0.03))]
)
def test_centroids_move_by_the_mean_or_the_sum_of_their_members_steps(update, moves):
    # three members with gradients 1, 2, 3 and two with -1, -2, learning rate .01
    weights = torch.tensor([-1.1, -1.0, -0.9, 0.9, 1.1])
    net = network(update, weights)
    net.set_policy([[1, 8]])
    weight = net.module[0].weight
    optimizer = torch.optim.SGD([weight], lr=0.01)
    for step in (1, 2):
        optimizer.zero_grad()
        (net(torch.eye(5)).flatten() * torch.tensor([1.0, 2.0, 3.0, -1.0, -2.0])).sum().backward()
        optimizer.step()
        net.after_step()
        low, high = -1 + step * moves[0], 1 + step * moves[1]
        expected = torch.tensor([[low, low, low, high, high]])
        torch.testing.assert_close(weight.detach(), expected)
        with torch.no_grad():
            torch.testing.assert_close(net(torch.eye(5)).flatten(), expected.flatten())


@pytest.mark.parametrize("update", ["haq", "deep-compression"])
def test_training_keeps_the_number_of_shared_values(update):
    net = network(update)
    net.set_policy([[3, 8], [2, 8]])
    generator = torch.Generator().manual_seed(2)
    lr = 0.05 if update == "haq" else 0.0005
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    x, y = torch.randn(64, 30, generator=generator), torch.randint(4, (64,), generator=generator)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.after_step()
        losses.append(float(loss.detach()))
        assert len(net.module[0].weight.unique()) <= 8
        assert len(net.module[2].weight.unique()) <= 4
    assert losses[-1] < losses[0]


def test_forgetting_after_step_still_trains_the_centroids():
    net = network(weights=torch.tensor([-1.1, -1.0, -0.9, 0.9, 1.1]))
    net.set_policy([[1, 8]])
    net(torch.eye(5))  # clusters are those of the weights at the first pass
    with torch.no_grad():
        net.module[0].weight.add_(torch.tensor([[0.1, 0.2, 0.3, 0.0, 0.0]]))
    expected = torch.tensor([-0.8, -0.8, -0.8, 1.0, 1.0])
    torch.testing.assert_close(net(torch.eye(5)).flatten().detach(), expected)


def test_changing_bits_clusters_anew():
    net = network()
    net.set_policy([[1, 8], [1, 8]])
    net(torch.zeros(1, 30))
    net.after_step()
    assert len(net.module[0].weight.unique()) == 2
    net.restore()
    net.set_policy([[4, 8], [4, 8]])
    assert len(net.module[0].slot.quantized(net.module[0].weight).unique()) == 16
