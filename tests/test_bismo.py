"""BISMO: the published numbers, the event-by-event machine, and what must hold for any layer."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tables import conv, linear, mobilenet_v1, mobilenet_v2, resnet50

from haq_env.errors import InputError
from haq_env.hardware.bismo import Bismo, cloud, edge
from haq_env.layers import Layer, LayerTable
from haq_env.policy import uniform

NETWORKS = {"V1": mobilenet_v1(), "V2": mobilenet_v2()}
MACHINES = {"edge": edge(), "cloud": cloud()}

# HAQ Table 3: milliseconds at uniform 4, 5, 6 and 8 bits, first and last layer not counted
TABLE_3 = {
    ("edge", "V1"): (45.45, 57.75, 70.67, 96.20),
    ("edge", "V2"): (52.15, 66.94, 82.49, 115.84),
    ("cloud", "V1"): (57.49, 77.52, 99.86, 151.09),
    ("cloud", "V2"): (74.46, 99.43, 127.07, 189.82),
}
CELLS = [
    (machine, network, bits, printed)
    for (machine, network), row in TABLE_3.items()
    for bits, printed in zip((4, 5, 6, 8), row, strict=True)
]
# These three lie a constant 2.04 ms above the model; no text says why (docs/hardware.md 2.6).
UNEXPLAINED = {("edge", "V1", bits) for bits in (4, 5, 6)}


def inner_latency(machine: str, network: str, bits: int) -> float:
    table = MACHINES[machine].cost_table(NETWORKS[network])
    return float(table.grid("latency")[1:-1, bits - 1, bits - 1].sum())


# -- the event form: one step after the other ----------------------------------------------------


def arrivals(machine: Bismo, rows: int, k: int, bits: int) -> list[list[list[int]]]:
    """Cycle at which each word [tile][word][bit] has arrived, fetched one beat per cycle."""
    words = -(-k // machine.word_bits)
    sizes = [machine.word_bits] * (words - 1) + [k - (words - 1) * machine.word_bits]
    cycle = 0
    result = []
    for start in range(0, rows, machine.pe):
        height = min(machine.pe, rows - start)
        tile = []
        for size in sizes:
            word = []
            for _ in range(bits):
                cycle += height * -(-size // machine.axi_bits)
                word.append(cycle)
            tile.append(word)
        result.append(tile)
    return result


def simulate(machine: Bismo, outer: int, inner: int, k: int, o_bits: int, i_bits: int) -> int:
    """Run one buffer-resident product step by step; every step waits for both of its words."""
    first, second = arrivals(machine, outer, k, o_bits), arrivals(machine, inner, k, i_bits)
    cycle = 0
    for tile in first:
        for other in second:
            for word, other_word in zip(tile, other, strict=True):
                for other_arrival in other_word:
                    for arrival in word:
                        cycle = max(cycle + 1, arrival, other_arrival)
    return cycle


def reference_product(machine: Bismo, m: int, n: int, k: int, w: int, a: int) -> int:
    """T(M, N, K) with plain loops: split K, cut M and N, take the better order of the sums."""
    words_at_once = machine.depth // max(w, a)
    if -(-k // machine.word_bits) > words_at_once:
        part = words_at_once * machine.word_bits
        parts = [part] * (k // part) + ([k % part] if k % part else [])
        return sum(reference_product(machine, m, n, one, w, a) for one in parts)
    words = -(-k // machine.word_bits)
    sums = [0, 0]
    m_chunk = machine.pe * (machine.depth // (words * w))
    n_chunk = machine.pe * (machine.depth // (words * a))
    for m_start in range(0, m, m_chunk):
        for n_start in range(0, n, n_chunk):
            rows, columns = min(m_chunk, m - m_start), min(n_chunk, n - n_start)
            sums[0] += simulate(machine, rows, columns, k, w, a)
            sums[1] += simulate(machine, columns, rows, k, a, w)
    return min(sums)


def product(machine: Bismo, *numbers: int) -> int:
    return int(machine.matrix_product(*(np.array(number) for number in numbers))[0])


small_machines = st.builds(
    lambda pe, axi, beats, depth: Bismo(
        pe=pe, word_bits=axi * beats, axi_bits=axi, depth=depth, clock_hz=1e6
    ),
    pe=st.integers(1, 4),
    axi=st.integers(1, 5),
    beats=st.integers(1, 4),
    depth=st.integers(8, 20),
)
some_bits = st.integers(1, 8)


@settings(max_examples=300, deadline=None)
@given(small_machines, *[st.integers(1, 14)] * 2, st.integers(1, 40), some_bits, some_bits)
def test_closed_form_of_a_block_equals_the_event_by_event_machine(machine, outer, inner, k, w, a):
    got = machine.block(*(np.array(number) for number in (outer, inner, k, w, a)))
    assert int(got) == simulate(machine, outer, inner, k, w, a)


@settings(max_examples=100, deadline=None)
@given(small_machines, *[st.integers(1, 30)] * 2, st.integers(1, 60), some_bits, some_bits)
def test_cut_and_split_products_equal_plain_loops(machine, m, n, k, w, a):
    assert product(machine, m, n, k, w, a) == reference_product(machine, m, n, k, w, a)


# -- published numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("machine", "network", "bits", "printed"), CELLS)
def test_haq_table_3_is_reproduced(machine, network, bits, printed):
    ours = inner_latency(machine, network, bits)
    if machine == "cloud":
        assert abs(ours - printed) <= 0.005  # the printed digits
    elif (machine, network, bits) in UNEXPLAINED:
        assert printed - ours == pytest.approx(2.04, abs=0.005)
    else:
        assert ours == pytest.approx(printed, rel=6e-4)


@pytest.mark.parametrize(
    ("bits", "cycles"), [(4, 15_716_150), (5, 20_916_896), (6, 26_653_434), (8, 39_624_933)]
)
def test_sums_of_the_released_cloud_table_are_exact(bits, cycles):
    assert (
        float(cloud().cost_table(NETWORKS["V2"]).cost(uniform(53, bits, bits), "cycles")) == cycles
    )


def test_single_cells_of_the_released_cloud_table_are_exact():
    grid = cloud().cost_table(NETWORKS["V2"]).grid("cycles")
    assert grid[3, 0, 0] == 200_784
    assert grid[3, 7, 7] == 4_860_688


@pytest.mark.parametrize(("bits", "cycles"), [(4, 16_350_885), (5, 21_344_837), (6, 26_873_269)])
def test_sums_with_eight_bit_ends_as_the_released_code_takes_them(bits, cycles):
    # HAQ's code sets the first layer's activation bits to -1 and so reads the 7-bit column.
    policy = uniform(53, bits, bits).copy()
    policy[0], policy[-1] = (8, 7), (8, 8)
    assert float(cloud().cost_table(NETWORKS["V2"]).cost(policy, "cycles")) == cycles


def test_the_first_convolution_on_the_edge_takes_the_published_cycles():
    assert edge().cost_table(NETWORKS["V1"]).grid("cycles")[0, 7, 7] == 402_136


def test_worked_example_of_the_documentation():
    # 16 -> 96 pointwise on 112 x 112, 1 bit: weights outside 16464 cycles, activations 12549
    machine = cloud()
    m, n, k, one = (np.array(number) for number in (96, 112 * 112, 16, 1))
    assert int(machine.block(m, n, k, one, one)) == 16_464
    assert int(machine.block(n, m, k, one, one)) == 12_549


def test_ratios_of_uniform_policies_match_the_released_table():
    totals = {
        bits: cloud().cost_table(NETWORKS["V2"]).cost(uniform(53, bits, bits), "cycles")
        for bits in (4, 5, 6, 8)
    }
    ratios = [round(float(totals[bits] / totals[8]), 3) for bits in (4, 5, 6)]
    assert ratios == [0.397, 0.528, 0.673]


# -- what must hold for any layer ----------------------------------------------------------------

layers = st.one_of(
    st.builds(
        lambda cin, cout, size, kernel, stride: conv("c", cin, cout, size, kernel, stride),
        st.integers(1, 600), st.integers(1, 600), st.integers(1, 40),
        st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]),
    ),
    st.builds(
        lambda c, size, stride: conv("d", c, c, size, 3, stride, groups=c),
        st.integers(2, 600), st.integers(1, 60), st.sampled_from([1, 2]),
    ),
    st.builds(
        lambda g, i, o, size: conv("g", g * i, g * o, size, 3, groups=g),
        st.integers(2, 8), st.integers(2, 40), st.integers(1, 40), st.integers(1, 30),
    ),
    st.builds(
        lambda i, o, positions: linear("l", i, o, positions),
        st.integers(1, 60_000), st.integers(1, 2000), st.integers(1, 200),
    ),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(layers, st.sampled_from([edge(), cloud(), edge(batch=5), cloud(batch=1)]))
def test_cycles_are_positive_and_whole(layer, machine):
    grid = machine.cost_table(LayerTable("one", (layer,))).grid("cycles")
    assert (grid >= 1).all()
    assert np.array_equal(grid, np.floor(grid))


def assert_never_falls(cycles):
    assert (np.diff(cycles, axis=-2) >= 0).all()
    assert (np.diff(cycles, axis=-1) >= 0).all()


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([edge(), cloud()]),
    st.integers(1, 128 * 256),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_cycles_never_fall_with_more_bits_where_the_operands_fit_the_buffers(machine, k, m, n):
    # Where a side is cut, one bit more can make a luckier cut: docs/hardware.md section 2.7.
    most = machine.pe * (machine.depth // (-(-k // 256) * 8))
    bits = np.arange(1, 9)
    sides = (np.array(max(1, round(share * most))) for share in (m, n))
    assert_never_falls(machine.matrix_product(*sides, np.array(k), bits[:, None], bits)[0])


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("network", [*NETWORKS.values(), resnet50()], ids=lambda n: n.network)
def test_cycles_of_the_papers_networks_never_fall_with_more_bits(machine, network):
    assert_never_falls(machine.cost_table(network).grid("cycles"))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([edge(), cloud()]),
    *[st.integers(1, 5000)] * 2,
    st.integers(1, 60_000),
    some_bits,
    some_bits,
)
def test_swapping_the_two_sides_of_a_product_changes_nothing(machine, m, n, k, w, a):
    assert product(machine, m, n, k, w, a) == product(machine, n, m, k, a, w)


def test_swapping_weight_and_activation_bits_alone_changes_most_cells():
    changed = total = 0
    for machine in MACHINES.values():
        for network in NETWORKS.values():
            grid = machine.cost_table(network).grid("cycles")
            off_diagonal = ~np.eye(8, dtype=bool)
            changed += int((grid != grid.swapaxes(1, 2))[:, off_diagonal].sum())
            total += grid[:, off_diagonal].size
    assert changed / total > 0.8


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(28)), st.sampled_from(["cycles", "latency", "traffic"]))
def test_order_of_layers_changes_no_total(order, metric):
    network = NETWORKS["V1"]
    mixed = replace(network, layers=tuple(network[index] for index in order))
    policy = np.random.default_rng(0).integers(1, 9, size=(28, 2))
    total = edge().cost_table(network).cost(policy, metric)
    assert edge().cost_table(mixed).cost(policy[list(order)], metric) == pytest.approx(total)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_all_layers_at_once_equal_one_layer_at_a_time(machine):
    network = NETWORKS["V2"]
    whole = machine.cost_table(network)
    for index in range(0, len(network), 7):
        alone = machine.cost_table(LayerTable("one", (network[index],)))
        for metric in ("cycles", "latency", "traffic", "bitops"):
            assert np.array_equal(whole.grid(metric)[index], alone.grid(metric)[0])


@pytest.mark.parametrize("batch", [1, 2, 16, 33])
def test_any_batch_works_and_every_image_of_a_convolution_is_its_own_product(batch):
    one, many = edge().cost_table(NETWORKS["V1"]), edge(batch=batch).cost_table(NETWORKS["V1"])
    dense = [i for i, layer in enumerate(NETWORKS["V1"]) if layer.kind == "conv"]
    assert np.array_equal(many.grid("cycles")[dense], batch * one.grid("cycles")[dense])
    assert many.batch == batch


def test_reduction_that_does_not_fit_the_buffers_is_split():
    machine = cloud()
    half = product(machine, 10, 10, 32_768, 8, 8)
    assert product(machine, 10, 10, 65_536, 8, 8) == 2 * half
    assert product(machine, 10, 10, 32_769, 8, 8) == half + product(machine, 10, 10, 1, 8, 8)


def test_traffic_counts_each_operand_once_when_both_fit():
    # 16 x 256 weights and 256 x 49 activations: whole words, so no padding either
    table = cloud(batch=1).cost_table(LayerTable("one", (conv("c", 256, 16, 7),)))
    assert table.grid("traffic")[0, 3, 1] == (16 * 256 * 4 + 49 * 256 * 2) / 8


def test_traffic_grows_by_refetches_where_a_side_is_cut():
    # 20480 columns of one word at 8 bits: 16 * (1024 // 8) = 2048 a chunk, so weights come 10 times
    table = cloud(batch=1).cost_table(LayerTable("one", (linear("l", 256, 16, 20_480),)))
    assert table.grid("traffic")[0, 7, 7] == 256 * (10 * 16 + 20_480)


def test_energy_needs_an_assumed_board_power():
    with pytest.raises(InputError, match=r"no published energy model.*board_power_w"):
        edge().cost_table(NETWORKS["V1"]).grid("energy")
    table = edge(board_power_w=2.5).cost_table(NETWORKS["V1"])
    assert np.allclose(table.grid("energy"), 2.5 * table.grid("latency"))
    assert "assumed power" in table.notes


def test_roofs_bound_every_layer():
    for machine in MACHINES.values():
        table = machine.cost_table(resnet50())
        assert table.roofs is not None
        seconds = table.grid("latency") / 1e3
        assert (table.grid("macs") / seconds <= table.roofs.peak * (1 + 1e-9)).all()
        assert (table.grid("traffic") / seconds <= table.roofs.bandwidth * (1 + 1e-9)).all()


def test_the_full_table_of_mobilenet_v2_takes_less_than_a_fifth_of_a_second():
    cloud().cost_table(NETWORKS["V1"])
    started = time.process_time()
    table = cloud().cost_table(NETWORKS["V2"])
    assert time.process_time() - started < 0.2
    assert table.grid("cycles").shape == (53, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch must be a positive integer, not 0"),
        ({"pe": -8}, "pe must be a positive integer, not -8"),
        ({"pe": 8.5}, "pe must be a positive integer, not 8.5"),
        ({"pe": True}, "pe must be a positive integer, not True"),
        ({"clock_hz": "fast"}, "clock_hz must be a positive number, not 'fast'"),
        ({"clock_hz": float("nan")}, "clock_hz must be a positive number, not nan"),
        ({"board_power_w": 0}, "board_power_w must be a positive number or None, not 0"),
        ({"axi_bits": 100}, "axi_bits must divide word_bits = 256, not 100"),
        ({"depth": 7}, "depth must be 8 or more"),
        ({"name": 3}, "name must be text, not 3"),
    ],
)
def test_wrong_parameters_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        edge(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_channels": 0}, "in_channels must be a positive integer, not 0"),
        ({"out_channels": -3}, "out_channels must be a positive integer, not -3"),
        ({"kernel": (0, 3)}, "kernel must be a positive integer, not 0"),
        ({"out_size": (7, -7)}, "out_size must be a positive integer, not -7"),
        ({"kind": "pool"}, "unknown kind 'pool'"),
    ],
)
def test_impossible_layers_never_reach_the_model(wrong, message):
    good = {"name": "x", "kind": "conv", "in_channels": 4, "out_channels": 4}
    with pytest.raises(InputError, match=message):
        Layer(**(good | wrong))


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_out_of_range_have_no_cost(bits):
    with pytest.raises(InputError, match="bits must be 1 to 8"):
        edge().cost_table(NETWORKS["V1"]).cost(np.full((28, 2), bits), "cycles")
