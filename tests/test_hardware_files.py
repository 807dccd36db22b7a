"""Model size, roofline, cost tables as CSV, their lint, and hardware from names and files."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tables import conv, linear, mobilenet_v1, mobilenet_v2, resnet50

from haq_env.cost import UNITS, CostTable
from haq_env.errors import InputError
from haq_env.hardware import HARDWARE, Hardware
from haq_env.hardware.bismo import Bismo, cloud, edge
from haq_env.hardware.bitfusion import BitFusion
from haq_env.hardware.load import load_hardware
from haq_env.hardware.roofline import Roofline
from haq_env.hardware.size import ModelSize
from haq_env.hardware.table import MeasuredTable, lint_file, lint_table, read_table, write_table
from haq_env.layers import LayerTable
from haq_env.policy import uniform

V1 = mobilenet_v1()
SMALL = LayerTable(
    "small", (conv("conv1", 3, 8, 8, 3), conv("dw", 8, 8, 8, 3, groups=8), linear("fc", 8, 10))
)
TWO_LAYERS = replace(SMALL, layers=SMALL.layers[:2])
MIB = 2**20

# HAQ Table 6, "MB": 2, 3, 4 bits and fp32
TABLE_6 = {
    "mobilenet_v1": (1.09, 1.60, 2.10, 16.14),
    "mobilenet_v2": (0.96, 1.38, 1.79, 13.37),
    "resnet50": (6.32, 9.36, 12.40, 97.49),
}
NETWORKS = {network.network: network for network in (V1, mobilenet_v2(), resnet50())}


class Doubler:
    """A user's own hardware: a class with one method is enough."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def cost_table(self, layers: LayerTable) -> CostTable:
        return CostTable(layers.names, {"latency": np.full((len(layers), 8, 8), self.factor)}, "x")


ready_made = Doubler(7.0)

# -- size and roofline ---------------------------------------------------------------------------


@pytest.mark.parametrize("network", TABLE_6)
def test_haq_table_6_sizes_are_reproduced_to_the_printed_digit(network):
    layers, (*printed, fp32) = NETWORKS[network], TABLE_6[network]
    table = ModelSize(first_conv_bits=32).cost_table(layers)
    for bits, mebibytes in zip((2, 3, 4), printed, strict=True):
        ours = float(table.cost(uniform(len(layers), bits, 8), "size"))
        assert f"{ours / MIB:.2f}" == f"{mebibytes:.2f}"
    assert f"{(layers.weights * 4 + table.constant('size')) / MIB:.2f}" == f"{fp32:.2f}"


def test_an_eight_bit_first_convolution_does_not_give_table_6():
    layers = NETWORKS["resnet50"]
    policy = uniform(len(layers), 2, 8).copy()
    policy[0] = 8
    ours = float(ModelSize().cost_table(layers).cost(policy, "size"))
    assert f"{ours / MIB:.2f}" == "6.29"


def test_size_depends_on_weight_bits_alone_and_is_the_first_metric():
    table = ModelSize().cost_table(V1)
    assert table.metric == "size"
    assert np.array_equal(table.grid("size")[:, :, 0], table.grid("size")[:, :, 7])
    assert table.grid("size")[0, 7, 0] == V1[0].weights
    assert float(table.cost(uniform(28, 8, 8), "macs")) == V1.macs
    assert float(table.cost(uniform(28, 3, 5), "bitops")) == 15 * V1.macs
    with pytest.raises(InputError, match="no model of latency"):
        table.grid("latency")


def test_every_hardware_counts_the_same_size_and_operations():
    roofline = Roofline(peak_ops=1e12, bandwidth=1e9)
    expected = ModelSize().cost_table(V1)
    for hardware in (edge(), BitFusion(), roofline):
        table = hardware.cost_table(V1)
        for metric in ("size", "bitops", "macs"):
            assert np.array_equal(table.grid(metric), expected.grid(metric))
            assert table.constant(metric) == expected.constant(metric)


def test_roofline_takes_the_longer_of_compute_and_memory():
    layer = linear("fc", 100, 10)
    slow_memory = Roofline(peak_ops=1e18, bandwidth=1000.0, overhead_s=0.5)
    table = slow_memory.cost_table(LayerTable("one", (layer,)))
    moved = (1000 * 4 + 100 * 2 + 10 * 8) / 8
    assert table.grid("traffic")[0, 3, 1] == moved
    assert table.grid("latency")[0, 3, 1] == pytest.approx(1e3 * (moved / 1000 + 0.5))
    slow_compute = Roofline(peak_ops=1000.0, bandwidth=1e18, batch=3)
    table = slow_compute.cost_table(LayerTable("one", (layer,)))
    assert table.grid("latency")[0, 3, 1] == pytest.approx(1e3 * 3 * 1000 * 8 / 1000)
    assert table.roofs is not None
    assert table.roofs.peak[3, 1] == 1000 / 8
    with pytest.raises(InputError, match=r"no model of energy.*nothing of energy"):
        table.grid("energy")


# -- CSV: there and back -------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("hardware", [edge(), cloud(board_power_w=3.3), BitFusion(), ModelSize()])
def test_a_table_from_csv_equals_the_table_from_the_model(tmp_path, hardware, network):
    layers = NETWORKS[network]
    table = hardware.cost_table(layers)
    write_table(tmp_path / "costs.csv", table)
    again = MeasuredTable(tmp_path / "costs.csv").cost_table(layers)
    for metric in again.values:
        assert np.array_equal(again.grid(metric), table.grid(metric)), metric
        assert again.constant(metric) == table.constant(metric)
    assert set(table.values) - set(again.values) <= {"traffic"}
    for field in ("names", "hardware", "batch", "clock_hz", "source", "notes", "metric"):
        assert getattr(again, field) == getattr(table, field), field


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=30), st.floats(1e-3, 1e12))
def test_round_trips_are_exact_for_any_numbers(tmp_path_factory, numbers, clock):
    path = tmp_path_factory.mktemp("csv") / "costs.csv"
    grid = np.resize(np.array(numbers), (3, 8, 8))
    table = CostTable(SMALL.names, {"latency": grid}, "any", clock_hz=clock)
    write_table(path, table)
    again = read_table(path, SMALL)
    assert np.array_equal(again.grid("latency"), grid)
    assert again.clock_hz == clock


@pytest.mark.parametrize("source", ["BISMO, measured", "one, two, three, four, five, six"])
@pytest.mark.parametrize("complete", [True, False])
def test_a_table_that_a_spreadsheet_has_saved_is_the_same_table(csv_file, source, complete):
    """Spreadsheets fill all lines up to the longest, and begin with a mark."""
    if complete:
        path = csv_file("")
        write_table(path, replace(edge().cost_table(SMALL), source=source))
    else:
        path = csv_file(
            single(1.5, header=f"# metric: latency\n# unit: us\n# source: {source}\n\n")
        )
    before = read_table(path, SMALL)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    longest = max(map(len, rows))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([*row, *[""] * (longest - len(row))] for row in rows)
    after = read_table(path, SMALL)
    assert (after.hardware, after.batch, after.clock_hz) == (
        before.hardware,
        before.batch,
        before.clock_hz,
    )
    assert after.source == before.source
    assert after.metric == before.metric
    assert after.constants == before.constants
    assert all(np.array_equal(after.grid(m), grid) for m, grid in before.values.items())


def test_the_complete_table_has_the_documented_columns_and_header(tmp_path):
    write_table(tmp_path / "costs.csv", edge().cost_table(SMALL))
    lines = (tmp_path / "costs.csv").read_text().splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [
        "# hardware",
        "# batch",
        "# clock_hz",
        "# source",
    ]
    names = next(line for line in lines if not line.startswith("#"))
    assert names == "layer,name,w_bits,a_bits,cycles,latency_ms,energy_mj,size_bytes"
    assert len(lines) - lines.index(names) - 1 == 3 * 64
    assert lines[-1].startswith("2,fc,8,8,")
    assert lines[-1].split(",")[6] == ""  # no energy model


def single(value="1.5", *, header="# metric: latency\n# unit: ms\n", key="name", layers=SMALL):
    """A single-value table: the same number in every cell, or value(layer, w, a)."""
    rows = ["layer,w_bits,a_bits,value"]
    for index, name in enumerate(layers.names):
        for w in range(1, 9):
            for a in range(1, 9):
                number = value(index, w, a) if callable(value) else value
                rows.append(f"{name if key == 'name' else index},{w},{a},{number}")
    return header + "\n".join(rows) + "\n"


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "mine.csv"

    def write(text):
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("metric", "unit", "factor"),
    [
        ("latency", "s", 1e3),
        ("latency", "ms", 1),
        ("latency", "us", 1e-3),
        ("latency", "ns", 1e-6),
        ("energy", "J", 1e3),
        ("energy", "mJ", 1),
        ("energy", "uJ", 1e-3),
        ("size", "bytes", 1),
        ("size", "KiB", 1024),
        ("size", "MiB", 2**20),
        ("traffic", "MiB", 2**20),
        ("cycles", "cycles", 1),
    ],
)
def test_units_are_converted(csv_file, metric, unit, factor):
    table = read_table(csv_file(single(header=f"# metric: {metric}\n# unit: {unit}\n")), SMALL)
    assert table.grid(metric)[2, 7, 7] == 1.5 * factor
    assert table.metric == metric


@pytest.mark.parametrize("key", ["name", "index"])
def test_layers_may_be_given_by_name_or_index(csv_file, key):
    path = csv_file(single(lambda layer, w, a: 100 * layer + 10 * w + a, key=key))
    assert read_table(path, SMALL).grid("latency")[1, 2, 6] == 137


def test_layers_with_numbers_for_names_are_told_from_indices(csv_file):
    numbered = replace(
        SMALL,
        layers=tuple(
            replace(layer, name=name) for layer, name in zip(SMALL, ("0", "2", "4"), strict=True)
        ),
    )
    for key in ("name", "index"):
        path = csv_file(single(lambda layer, w, a: layer + 1, key=key, layers=numbered))
        assert list(read_table(path, numbered).grid("latency")[:, 0, 0]) == [1, 2, 3]


def test_cycles_with_a_clock_give_a_latency(csv_file):
    header = "# metric: cycles\n# unit: cycles\n# clock_hz: 2e8\n# batch: 4\n# hardware: board\n"
    table = read_table(csv_file(single("2000", header=header)), SMALL)
    assert table.grid("latency")[0, 0, 0] == 0.01
    assert (table.batch, table.hardware, table.metric) == (4, "board", "cycles")
    assert table.grid("macs")[2, 0, 0] == 4 * 80
    with pytest.raises(InputError, match=r"no model of energy.*mine\.csv gives none"):
        table.grid("energy")


def edited(old, new):
    return single().replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (single() + "fc,8,8,2\n", r"line 196: layer 'fc' at w_bits = 8, a_bits = 8 is given twice"),
        (edited("dw,3,3,1.5\n", ""), "misses 1 of 192 cells: layer 'dw' at w_bits = 3, a"),
        (single(layers=TWO_LAYERS), r"misses 64 of 192 cells: layer 'fc' .*\.\.\."),
        (edited("dw,3,3,1.5", "dw,3,3,fast"), "line 86: value must be a number .*, not 'fast'"),
        (edited("dw,3,3,1.5", "dw,3,3,"), "latency misses 1 of 192 cells"),
        (edited("dw,3,3,1.5", "dw,3,3,-2"), "value must be a number from 0 up, not '-2'"),
        (edited("dw,3,3,1.5", "dw,3,3,inf"), "value must be a number from 0 up, not 'inf'"),
        (edited("dw,3,3,1.5", "conv,3,3,1.5"), "line 86: unknown layer 'conv'. Did you mean"),
        (edited("dw,3,3,1.5", "3,3,3,1.5"), "unknown layer '3'.*Or 0 to 2"),
        (edited("dw,3,3,1.5", "dw,9,3,1.5"), "line 86: w_bits must be 1 to 8, not '9'"),
        (edited("dw,3,3,1.5", "dw,3,0,1.5"), "a_bits must be 1 to 8, not '0'"),
        (edited("dw,3,3,1.5", "dw,3,2.5,1.5"), "a_bits must be 1 to 8, not '2.5'"),
        (edited("dw,3,3,1.5", "dw,3,3"), "line 86: 3 cells, but there are 4 columns"),
        (edited("# unit: ms\n", ""), "'# unit: ...' is missing.*latency: s, ms, us, ns"),
        (edited("# unit: ms\n", "# unit:\n"), "header line '# unit: ...' is missing"),
        (edited("# metric: latency\n", ""), "header line '# metric: ...' is missing"),
        (edited("latency", "speed"), "unknown metric 'speed'"),
        (edited("unit: ms", "unit: mJ"), "unknown unit of latency 'mJ'.*Known: ms, ns, s, us"),
        (edited("# unit", "# batch: 2.5\n# unit"), r"batch must be a positive integer, not '2.5'"),
        (edited("# unit", "# batch: two\n# unit"), r"batch must be a number from 0 up, not 'two'"),
        (edited("# unit", "# clock_hz: 0\n# unit"), "clock_hz must be a positive number"),
        (edited("a_bits", "bits"), "column 'a_bits' is missing"),
        (edited("a_bits,value", "a_bits,latency"), "unknown column 'latency'. Did you mean"),
        (edited("a_bits,value", "a_bits,a_bits"), "column 'a_bits' occurs twice"),
        ("# metric: latency\n", "has no column names"),
        ("# metric: latency\n# unit: ms\nlayer,w_bits,a_bits,value\n", "gives no costs"),
        ("layer,w_bits,a_bits\n", "no column of costs"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_with_the_place_and_what_is_allowed(csv_file, text, message):
    path = csv_file(text)
    with pytest.raises(InputError, match=message) as caught:
        read_table(path, SMALL)
    assert "mine.csv" in str(caught.value)
    assert lint_file(path, SMALL) == [str(caught.value)]


def test_a_table_of_another_network_is_refused(tmp_path):
    write_table(tmp_path / "costs.csv", edge().cost_table(V1))
    with pytest.raises(InputError, match=r"unknown layer|is called 'dw1' here, but 'dw'"):
        read_table(tmp_path / "costs.csv", SMALL)


def test_a_table_of_another_size_of_the_network_is_refused(tmp_path):
    """All layers have the same names there."""
    path = tmp_path / "costs.csv"
    write_table(path, edge(batch=4).cost_table(SMALL))
    assert read_table(path, SMALL).batch == 4
    wider = conv("conv1", 3, 16, 8, 3), conv("dw", 16, 16, 8, 3, groups=16), linear("fc", 16, 10)
    larger = conv("conv1", 3, 8, 16, 3), conv("dw", 8, 8, 16, 3, groups=8), linear("fc", 8, 10)
    for other in (LayerTable("small", wider), LayerTable("small", larger)):
        with pytest.raises(InputError, match=r"costs\.csv has .* 18,512 MACs .* another width"):
            read_table(path, other)
    write_table(path, Doubler().cost_table(SMALL), SMALL)  # a table that counts no MACs
    with pytest.raises(InputError, match=r"costs\.csv has .* 18,512 MACs"):
        read_table(path, LayerTable("small", wider))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("# macs")))
    read_table(path, LayerTable("small", larger))  # says nothing of it


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"cannot read the table nowhere\.csv"):
        read_table("nowhere.csv", SMALL)


# -- lint ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("hardware", [edge(), cloud(), BitFusion(monotone=True), ModelSize()])
def test_lint_finds_nothing_in_good_tables(hardware, network):
    assert lint_table(hardware.cost_table(network)) == []


def altered(metric, change, **fields):
    table = edge().cost_table(V1)
    grid = table.grid(metric).copy()
    change(grid)
    return replace(table, values={**table.values, metric: grid}, **fields)


def test_lint_counts_falling_steps_and_shows_the_worst():
    findings = lint_table(BitFusion().cost_table(V1))
    assert any(f.startswith("latency: falls in 27 of the 3136 steps") for f in findings)
    assert any(f.startswith("energy: falls in 130 of the 3136 steps") for f in findings)
    assert any("worst -27.98 %" in f for f in findings)


def test_lint_finds_a_layer_in_another_unit():
    def microseconds(grid):
        grid[7] *= 1000

    findings = lint_table(altered("latency", microseconds))
    assert any("layer 'dw4' costs" in f and "slip of unit" in f for f in findings)
    assert any("contradict cycles / clock" in f for f in findings)


def test_lint_finds_a_cell_in_another_unit():
    def seconds(grid):
        grid[7, 4, 4] /= 1000

    findings = lint_table(altered("cycles", seconds))
    assert any("neighbouring cells differ" in f and "'dw4'" in f for f in findings)


def test_lint_finds_a_clock_that_contradicts_the_latency():
    findings = lint_table(replace(edge().cost_table(V1), clock_hz=200e3))
    assert len(findings) == 1
    assert "contradict cycles / clock" in findings[0]
    assert "0.001 times as long" in findings[0]


def test_lint_finds_cells_that_are_zero():
    def nothing(grid):
        grid[3, 2, 1] = 0

    findings = lint_table(altered("latency", nothing))
    assert any("1 of 1792 cells are not positive, first layer 'dw2', w_bits = 3, a_bits = 2" in f
               for f in findings)  # fmt: skip


# -- names, files, classes -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HARDWARE))
def test_registered_hardware_needs_no_parameters(name):
    table = load_hardware(name).cost_table(V1)
    assert table.metric in table.values
    assert set(table.values) <= set(UNITS)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_users_overlay_is_a_few_lines_in_a_file(tmp_path, suffix):
    own = {"model": "bismo", "name": "mine", "pe": 4, "word_bits": 128, "axi_bits": 32}
    own |= {"depth": 512, "clock_hz": 1e8, "batch": 2}
    lines = [f"{key} = {json.dumps(value)}" for key, value in own.items()]
    path = tmp_path / f"overlay{suffix}"
    path.write_text(json.dumps(own) if suffix == ".json" else "\n".join(lines))
    expected = Bismo(
        name="mine", pe=4, word_bits=128, axi_bits=32, depth=512, clock_hz=1e8, batch=2
    )
    assert load_hardware(path) == expected
    assert load_hardware(str(path)).cost_table(V1).hardware == "mine"
    assert load_hardware(path, batch=3) == replace(expected, batch=3)


def test_hardware_of_no_parameters_says_so():
    class Fixed:
        def cost_table(self, layers):
            return edge().cost_table(layers)

    with pytest.raises(InputError, match=r"Fixed takes no parameters, but got batch\."):
        load_hardware(Fixed, batch=2)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path, suffix):
    text = {
        "toml": 'model = "bismo-edge"\nbatch = 4',
        "json": '{"model": "bismo-edge", "batch": 4}',
    }
    path = tmp_path / f"my.{suffix}"
    path.write_text(text[suffix], encoding="utf-8-sig")
    assert load_hardware(path) == edge(batch=4)


def test_registered_machines_take_overrides_in_python_and_in_files(tmp_path):
    path = tmp_path / "edge.toml"
    path.write_text('model = "bismo-edge"\nbatch = 4\nboard_power_w = 2.5\n')
    expected = edge(batch=4, board_power_w=2.5)
    assert load_hardware(path) == expected
    assert load_hardware("bismo-edge", batch=4, board_power_w=2.5) == expected
    path.write_text('model = "size"\nfirst_conv_bits = 32\n')
    assert load_hardware(path) == ModelSize(first_conv_bits=32)
    path.write_text('model = "bitfusion"\ngroups = "block"\n')
    assert load_hardware(path) == BitFusion(groups="block")
    path.write_text('model = "roofline"\npeak_ops = 1e12\nbandwidth = 1000000000\n')
    assert load_hardware(path) == Roofline(peak_ops=1e12, bandwidth=1_000_000_000)


def test_a_csv_file_is_hardware(tmp_path):
    write_table(tmp_path / "costs.csv", edge().cost_table(V1))
    loaded = load_hardware(str(tmp_path / "costs.csv"))
    assert loaded.cost_table(V1).hardware == "bismo-edge"


def test_own_classes_and_objects_are_hardware():
    own = Doubler()
    assert isinstance(own, Hardware)
    assert load_hardware(own) is own
    assert load_hardware(Doubler, factor=3.0).cost_table(V1).grid("latency")[0, 0, 0] == 3.0
    named = load_hardware(f"{__name__}:Doubler", factor=5.0)
    assert named.cost_table(V1).grid("latency")[0, 0, 0] == 5.0
    assert load_hardware(f"{__name__}:ready_made") is ready_made


def test_the_examples_of_the_documentation_work(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "hardware.md").read_text(encoding="utf-8")
    toml, table = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("toml", "csv"))
    (tmp_path / "mine.toml").write_text(toml)
    assert load_hardware(tmp_path / "mine.toml") == edge(name="my overlay", pe=4, batch=4)
    header = table.split("layer,")[0]
    (tmp_path / "mine.csv").write_text(single("812.5", header=header))
    loaded = load_hardware(tmp_path / "mine.csv").cost_table(SMALL)
    assert loaded.grid("latency")[0, 0, 0] == 0.8125
    assert (loaded.hardware, loaded.clock_hz) == ("my board", 1e8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pe = 8\n', "the key 'model' is missing; known: bismo, bismo-cloud"),
        ('model = "bisno"\n', "unknown model 'bisno'. Did you mean 'bismo'"),
        ('model = 3\n', "unknown model 3"),
        ('model = "bismo"\npe = 8\n', "needs the parameter 'word_bits' .missing: word_bits, axi"),
        ('model = "bismo-edge"\nbach = 2\n', "unknown parameter .* 'bach'. Did you mean 'batch'"),
        ('model = "bismo-edge"\npe = "8"\n', "pe must be a positive integer, not '8'"),
        ('model = "bismo-edge"\npe = -1\n', "pe must be a positive integer, not -1"),
        ('model = "bitfusion"\npad = 1\n', "pad must be true or false, not 1"),
        (f'model = "bismo-edge"\nbatch = {10**16}\n', "batch must be at most 2,147,483,648"),
        (f'model = "bitfusion"\nbandwidth_bits = {10**400}\n', "bandwidth_bits must be at most"),
        ('model = "size"\npe = 1\n', "unknown parameter of size 'pe'. Known: first_conv_bits"),
        ('model = "roofline"\npeak_ops = 1.0\n', "needs the parameter 'bandwidth'"),
        ('model = ', "is not valid TOML"),
    ],
)  # fmt: skip
def test_bad_toml_names_the_file_the_key_and_what_is_allowed(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_hardware(path)
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "keys and values"),
        ("{", "not valid JSON"),
        ('{"model": "size", "x": ' + "[" * 100_000, "not valid JSON"),
        ('{"model": "bismo-edge", "batch": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_bad_json_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_hardware(path)


def test_a_quote_that_is_never_closed_is_one_line(csv_file):
    layers = NETWORKS["mobilenet_v1"]
    path = csv_file("")
    write_table(path, edge().cost_table(layers))
    text = path.read_text()
    first, rest = text.split(f",{layers.names[0]},", 1)
    path.write_text(f'{first},"{layers.names[0]},{rest}{"x" * 140_000}')
    complaint = r"line \d+: .*; is a quote not closed\?"
    with pytest.raises(InputError, match=complaint):
        read_table(path, layers)
    assert re.search(complaint, str(lint_file(path, layers)))


@pytest.mark.parametrize(
    ("spec", "parameters", "message"),
    [
        ("bismo-egde", {}, "unknown hardware 'bismo-egde'. Did you mean 'bismo-edge'"),
        ("bismo-edge", {"speed": 3}, "unknown parameter of bismo-edge 'speed'. Known: axi_bits"),
        ("roofline", {}, "needs the parameter 'peak_ops'"),
        ("nowhere.toml", {}, "cannot read the hardware file nowhere.toml"),
        (
            "no.such.module:Class",
            {},
            "hardware 'no.such.module:Class': importing 'no.such.module' fail",
        ),
        ("haq_env.hardware.bismo:Nothing", {}, "unknown hardware in haq_env.hardware.bismo"),
        ("haq_env.hardware.bismo:NO_ENERGY", {}, "has no method cost_table"),
        (42, {}, "hardware must be a name, a file"),
        (ready_made, {"factor": 1.0}, "takes no parameters, but got factor"),
        ("costs.csv", {"batch": 1}, "takes no parameters, but got batch"),
    ],
)
def test_hardware_that_cannot_be_found_or_built_says_why(spec, parameters, message):
    with pytest.raises(InputError, match=message):
        load_hardware(spec, **parameters)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_rate_may_be_written_as_a_whole_number(tmp_path, suffix):
    rates = {"peak_ops": 2_000_000_000_000, "bandwidth": 4_000_000_000}
    lines = [f"{name} = {value}" for name, value in rates.items()]
    text = "\n".join(['model = "roofline"', *lines])
    if suffix == "json":
        text = json.dumps({"model": "roofline", **rates})
    (tmp_path / f"r.{suffix}").write_text(text)
    written, plain = load_hardware(tmp_path / f"r.{suffix}"), Roofline(**map_floats(rates))
    grids = [machine.cost_table(V1).grid("latency") for machine in (written, plain)]
    assert np.array_equal(*grids)


def map_floats(numbers):
    return {name: float(value) for name, value in numbers.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"constants": {"latency": -50.0}},
            "constant latency must be a number from 0 up, not -50.0",
        ),
        ({"constants": {"latency": float("inf")}}, "constant latency must be a number"),
        ({"constants": {"latencyy": 5.0}}, "unknown metric 'latencyy'. Did you mean 'latency'"),
        ({"batch": 0}, "batch must be a positive integer, not 0"),
    ],
)
def test_what_no_machine_can_cost_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        CostTable(SMALL.names, {"latency": np.ones((3, 8, 8))}, "mine", **given)


def test_short_numbers_of_numpy_are_the_numbers_that_they_are():
    assert np.array_equal(
        BitFusion(batch=np.uint8(16)).cost_table(V1).grid("latency"),
        BitFusion(batch=16).cost_table(V1).grid("latency"),
    )
    short, plain = edge(clock_hz=np.int32(200_000_000)), edge(clock_hz=200_000_000)
    roofs = [machine.cost_table(V1).roofs for machine in (short, plain)]
    assert roofs[0].bandwidth == roofs[1].bandwidth > 0
    assert np.array_equal(roofs[0].peak, roofs[1].peak)


def test_hardware_without_latency_is_limited_by_what_it_has():
    grid = np.ones((len(V1), 8, 8))
    assert CostTable(V1.names, {"energy": grid}, hardware="my chip").metric == "energy"
    with pytest.raises(InputError, match="unknown metric 'latncy'"):
        CostTable(V1.names, {"energy": grid}, hardware="my chip", metric="latncy")
