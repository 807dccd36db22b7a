"""BitFusion: HAQ's Tables 4 and 5, a plain search over all loop orders, and general properties."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tables import conv, linear, mobilenet_v1, mobilenet_v2, resnet50

from haq_env.errors import InputError
from haq_env.hardware.bitfusion import BitFusion
from haq_env.layers import Layer, LayerTable
from haq_env.policy import uniform

V1, V2 = mobilenet_v1(), mobilenet_v2()
UNIFORM = ((4, 4), (6, 4), (6, 6), (8, 8))
TABLE_4 = (7.86, 11.10, 19.99, 20.08)  # ms
TABLE_5 = (13.47, 16.57, 26.80, 31.03)  # mJ

# cycles at the four uniform policies, microjoules at the first and the last
VECTORS = {
    "conv1": ((147934, 147943, 147943, 147952), (438.12, 442.04)),
    "dw1": ((147062, 147158, 226140, 226241), (490.48, 711.17)),
    "pw1": ((276011, 276033, 280214, 284417), (814.76, 853.35)),
    "dw2": ((86552, 114167, 226984, 226670), (301.70, 629.66)),
    "dw7": ((296897, 453334, 903668, 904001), (1067.56, 3123.93)),
    "pw7": ((47276, 58369, 101238, 102188), (159.56, 330.91)),
    "pw13": ((55297, 67265, 101406, 110593), (182.59, 376.98)),
    "fc": ((21689, 32355, 32366, 43043), (63.09, 125.57)),
}


@pytest.fixture(scope="module")
def v1_table():
    return BitFusion().cost_table(V1)


def total(table, w, a, metric):
    return float(table.cost(uniform(len(table.names), w, a), metric))


# -- published numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "printed"), [*zip(UNIFORM, TABLE_4, strict=True)])
def test_haq_table_4_is_reproduced(v1_table, bits, printed):
    assert total(v1_table, *bits, "latency") == pytest.approx(printed, rel=3e-4)


@pytest.mark.parametrize(("bits", "printed"), [*zip(UNIFORM, TABLE_5, strict=True)])
def test_haq_table_5_is_reproduced(v1_table, bits, printed):
    assert total(v1_table, *bits, "energy") == pytest.approx(printed, rel=1.5e-3)


@pytest.mark.parametrize("name", VECTORS)
def test_single_layers_are_exact(v1_table, name):
    cycles, microjoules = VECTORS[name]
    layer = v1_table.names.index(name)
    grid, energy = v1_table.grid("cycles")[layer], v1_table.grid("energy")[layer]
    assert tuple(int(grid[w - 1, a - 1]) for w, a in UNIFORM) == cycles
    assert tuple(round(float(energy[b - 1, b - 1]) * 1e3, 2) for b in (4, 8)) == microjoules


def test_blockwise_depthwise_layers_give_the_documented_totals():
    table = BitFusion(groups="block").cost_table(V1)
    assert [round(total(table, w, a, "latency"), 2) for w, a in UNIFORM] == [4.08, 5.08, 8.14, 8.26]
    assert [round(total(table, w, a, "energy"), 2) for w, a in UNIFORM] == [6.41, 6.98, 8.48, 9.02]


def test_mobilenet_v2_has_the_documented_totals():
    table = BitFusion().cost_table(V2)
    assert [round(total(table, w, a, "latency"), 1) for w, a in UNIFORM] == [10.1, 14.1, 24.4, 24.6]
    assert [round(total(table, w, a, "energy"), 1) for w, a in UNIFORM] == [17.0, 21.1, 30.7, 35.6]


def test_padding_hardly_changes_mobilenet_v1_and_slows_mobilenet_v2(v1_table):
    padded = BitFusion(pad=True).cost_table(V1)
    for w, a in UNIFORM:
        for metric in ("latency", "energy"):
            plain = total(v1_table, w, a, metric)
            assert total(padded, w, a, metric) == pytest.approx(plain, abs=1e-3)
    slower = total(BitFusion(pad=True).cost_table(V2), 8, 8, "latency")
    assert slower - total(BitFusion().cost_table(V2), 8, 8, "latency") == pytest.approx(
        0.23, abs=0.01
    )


def test_artefacts_of_the_tile_search_are_as_documented(v1_table):
    for metric, count, worst in (("latency", 27, 0.992), ("energy", 130, 0.720)):
        grid = v1_table.grid(metric)
        steps = np.concatenate(
            [(grid[:, 1:] / grid[:, :-1]).ravel(), (grid[:, :, 1:] / grid[:, :, :-1]).ravel()]
        )
        assert (steps.size, int((steps < 1).sum())) == (3136, count)
        assert round(float(steps.min()), 3) == worst


# -- the same search with plain loops ------------------------------------------------------------


def sizes(dimension: int, start: int = 1) -> list[int]:
    result = [start * 2**i for i in range(20) if start * 2**i < dimension]
    return [*result, dimension]


def fetched(order, counts, walked, tile, room):
    total_bits = resident = tile
    stays = True
    for loop in order:
        if loop in walked:
            total_bits *= counts[loop]
            stays = stays and total_bits <= room
            resident = total_bits if stays else resident
        elif not stays:
            total_bits *= counts[loop]
    return total_bits, resident


def reference(
    machine: BitFusion, layer: Layer, w: int, a: int, *, first: bool
) -> tuple[int, float]:
    """Cycles and picojoules of one layer: every tile, all 120 orders, integers."""
    k, s, size = layer.kernel[0], layer.stride[0], layer.out_size[0]
    batch, im2col = machine.batch, first and layer.kind != "linear"
    a = 8 if first else a
    lanes = machine.rows * (8 // max(a, 2)) * (8 // max(w, 2))
    best = (math.inf, math.inf)
    for b, o, ic, oc in itertools.product(
        sizes(batch),
        sizes(size),
        sizes(layer.in_channels),
        sizes(layer.out_channels, 1 if im2col else machine.columns),
    ):
        counts = {"B": -(-batch // b), "X": -(-size // o), "Y": -(-size // o)}
        counts |= {"C": -(-layer.in_channels // ic), "F": -(-layer.out_channels // oc)}
        tiles = math.prod(counts.values())
        taps, pixels = k * k * ic, b * o * o
        act = pixels * taps * a if im2col else ((o - 1) * s + k) ** 2 * ic * b * a
        padded_taps = -(-taps // lanes) * lanes if machine.pad else taps
        padded_oc = -(-oc // machine.columns) * machine.columns if machine.pad else oc
        wgt, out = padded_taps * oc * w, pixels * padded_oc * 32
        rooms = [4 * machine.input_buffer, 4 * machine.weight_buffer, 4 * machine.output_buffer]
        if act > rooms[0] or wgt > rooms[1] or out > rooms[2]:
            continue
        reduction = -(-taps // lanes) if im2col else k * k * -(-ic // lanes)
        compute = tiles * pixels * -(-oc // machine.columns) * reduction
        q, ocm = reduction * lanes, -(-oc // machine.columns) * machine.columns
        stationary = {
            "inputs": q * pixels * (a + ocm * (w + 32)),
            "outputs": ocm * pixels * (32 + q * (a + w)),
            "weights": q * ocm * (w + pixels * (a + 32)),
        }
        stays = min(stationary, key=lambda name: stationary[name])
        macs = tiles * taps * pixels * oc
        read_in = macs / oc if stays == "inputs" else macs
        read_w = macs / pixels if stays == "weights" else macs
        sums = macs / taps if stays == "outputs" else macs
        output_pj = machine.output_read_pj + machine.output_write_pj
        chip = compute * machine.core_pj + read_in * a * machine.input_read_pj
        chip += read_w * w * machine.weight_read_pj + sums * 32 * output_pj
        for order in itertools.permutations("BXYCF"):
            t_in, r_in = fetched(order, counts, "BXYC", act, rooms[0])
            t_w, r_w = fetched(order, counts, "CF", wgt, rooms[1])
            t_out, r_out = fetched(order, counts, "BXYF", out, rooms[2])
            dram = t_in + t_w + 2 * t_out
            width = machine.bandwidth_bits
            alone = -(-(r_in + r_w + r_out) // width) + -(-r_out // width)
            rest = -(-(dram - r_in - r_w - 2 * r_out) // width)
            energy = chip + t_in * machine.input_write_pj + t_w * machine.weight_write_pj
            energy += t_out * output_pj + dram * machine.dram_pj
            best = min(best, (max(compute, rest) + alone, energy))
    return int(best[0]), best[1]


machines = st.builds(
    lambda **parameters: BitFusion(**parameters),
    rows=st.sampled_from([1, 4, 16]),
    columns=st.sampled_from([2, 8, 32]),
    bandwidth_bits=st.sampled_from([3, 64, 192]),
    weight_buffer=st.sampled_from([8192, 16384]),
    input_buffer=st.sampled_from([1024, 4096]),
    output_buffer=st.sampled_from([512, 2048]),
    batch=st.sampled_from([1, 2, 3]),
    pad=st.booleans(),
)
small_layers = st.one_of(
    st.builds(
        lambda *numbers: conv("c", *numbers),
        st.integers(1, 20), st.integers(1, 40), st.integers(1, 9),
        st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]),
    ),
    st.builds(
        lambda c, size: conv("d", c, c, size, 3, groups=c), st.integers(2, 30), st.integers(1, 8)
    ),
    st.builds(lambda i, o: linear("l", i, o), st.integers(1, 200), st.integers(1, 100)),
)  # fmt: skip
some_bits = st.integers(1, 8)


@settings(max_examples=60, deadline=None)
@given(machines, small_layers, some_bits, some_bits, st.booleans())
def test_the_search_equals_plain_loops_over_all_tiles_and_orders(machine, layer, w, a, first):
    table = LayerTable("net", (layer,) if first else (conv("before", 4, 4, 1), layer))
    costs = machine.cost_table(table)
    cycles, picojoules = reference(machine, layer, w, a, first=first)
    assert costs.grid("cycles")[-1, w - 1, a - 1] == cycles
    assert costs.grid("energy")[-1, w - 1, a - 1] == pytest.approx(picojoules * 1e-9, rel=1e-9)


def test_the_first_convolution_is_unrolled_wherever_it_stands():
    layer = conv("l", 3, 32, 32, 3)
    alone, after = (
        BitFusion().cost_table(LayerTable("net", layers))
        for layers in ((layer,), (linear("before", 4, 4), layer))
    )
    assert alone.grid("cycles")[0, 7, 7] == after.grid("cycles")[1, 7, 7]
    # but only the image has 8 bits whatever the policy says
    assert alone.grid("cycles")[0, 7, 1] > after.grid("cycles")[1, 7, 1]


# -- what must hold for any network --------------------------------------------------------------


def test_the_image_is_always_eight_bits(v1_table):
    for metric in ("cycles", "latency", "energy", "traffic"):
        first = v1_table.grid(metric)[0]
        assert np.array_equal(first, np.repeat(first[:, 7:], 8, axis=1))


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(1, 28)))
def test_order_of_the_other_layers_changes_no_total(order):
    mixed = replace(V1, layers=(V1[0], *(V1[index] for index in order)))
    policy = np.random.default_rng(0).integers(1, 9, size=(28, 2))
    expected = BitFusion().cost_table(V1).cost(policy, "energy")
    assert BitFusion().cost_table(mixed).cost(policy[[0, *order]], "energy") == pytest.approx(
        expected
    )


def test_all_layers_at_once_equal_one_layer_at_a_time(v1_table):
    for index in range(1, 28, 5):
        alone = BitFusion().cost_table(LayerTable("two", (conv("before", 4, 4, 1), V1[index])))
        for metric in v1_table.values:
            assert np.array_equal(v1_table.grid(metric)[index], alone.grid(metric)[1])


def test_a_monotone_table_never_falls_and_never_costs_more(v1_table):
    clean = BitFusion(monotone=True).cost_table(V1)
    assert "monotone" in clean.notes
    for metric in ("cycles", "latency", "energy", "traffic"):
        grid = clean.grid(metric)
        assert (np.diff(grid, axis=1) >= 0).all()
        assert (np.diff(grid, axis=2) >= 0).all()
        assert (grid <= v1_table.grid(metric)).all()


def test_a_batch_costs_less_per_image():
    table = BitFusion(batch=16).cost_table(V1)
    assert total(table, 8, 8, "latency") / 16 == pytest.approx(19.92, abs=0.01)
    assert table.batch == 16


def test_grouped_layers_run_as_dense_ones():
    grouped = LayerTable("net", (linear("a", 4, 4), conv("g", 64, 64, 14, 3, groups=4)))
    dense = LayerTable("net", (linear("a", 4, 4), conv("g", 64, 64, 14, 3)))
    for metric in ("cycles", "energy", "traffic"):
        a, b = (BitFusion().cost_table(net).grid(metric) for net in (grouped, dense))
        assert np.array_equal(a, b)


def test_roofs_bound_every_layer(v1_table):
    assert v1_table.roofs is not None
    assert v1_table.roofs.bandwidth == 12e9
    assert v1_table.roofs.peak[7, 7] == 512 * 500e6
    assert v1_table.roofs.peak[3, 3] == 4 * 512 * 500e6
    assert v1_table.roofs.peak[0, 0] == 16 * 512 * 500e6
    seconds = v1_table.grid("latency")[1:] / 1e3
    assert (v1_table.grid("macs")[1:] / seconds <= v1_table.roofs.peak * (1 + 1e-9)).all()
    assert (v1_table.grid("traffic")[1:] / seconds <= v1_table.roofs.bandwidth * (1 + 1e-9)).all()


def test_the_full_table_of_mobilenet_v2_takes_less_than_a_second_and_a_half():
    started = time.process_time()
    table = BitFusion().cost_table(V2)
    assert time.process_time() - started < 1.5
    assert table.grid("energy").shape == (53, 8, 8)


def test_resnet50_has_tiles_for_every_layer():
    table = BitFusion().cost_table(resnet50())
    assert all((table.grid(metric) > 0).all() for metric in ("cycles", "energy", "traffic"))


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("kernel", {"kernel": (1, 3)}),
        ("out_size", {"out_size": (7, 14)}),
        ("stride", {"stride": (1, 2)}),
    ],
)
def test_layers_that_are_not_square_are_named(what, wrong):
    layer = Layer("strange.one", "conv", 8, 8, **wrong)
    with pytest.raises(InputError, match=rf"'strange.one': {what} is \d+ x \d+"):
        BitFusion().cost_table(LayerTable("net", (layer,)))


def test_buffers_that_hold_no_tile_are_named():
    with pytest.raises(InputError, match=r"'conv1': no tile fits .*weight_buffer = 4,"):
        BitFusion(weight_buffer=4).cost_table(V1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"groups": "sparse"}, "groups must be 'dense' or 'block', not 'sparse'"),
        ({"pad": 1}, "pad must be true or false, not 1"),
        ({"rows": 0}, "rows must be a positive integer, not 0"),
        ({"dram_pj": -1.0}, "dram_pj must be a positive number, not -1.0"),
        ({"max_bits": 4}, "max_bits must be 8 or more"),
    ],
)
def test_wrong_parameters_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        BitFusion(**wrong)
