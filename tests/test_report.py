from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from layer_tables import conv, linear, mobilenet_v1
from rich.console import Console
from rich.table import Table

from haq_env.cost import CostTable, Roofs
from haq_env.errors import InputError
from haq_env.final import Final
from haq_env.hardware.load import load_hardware
from haq_env.layers import LayerTable
from haq_env.policy import uniform
from haq_env.report.listings import describe
from haq_env.report.plots import plot_bits, plot_search
from haq_env.report.record import cost_record
from haq_env.report.render import ansi, rgb_array
from haq_env.report.roofline import plot_roofline, roofline_points
from haq_env.report.tables import COMPARED, NetworkRow, comparison_table, cost_table
from haq_env.report.units import Scale
from haq_env.search.history import History, Trial


def two_layers() -> LayerTable:
    """8 x 9 x 16 = 1152 and 16 x 8 = 128 MACs."""
    return LayerTable("two", (conv("conv", 1, 8, 4, kernel=3), linear("fc", 16, 8)))


def two_costs(**changes: object) -> CostTable:
    """Costs that grow with w x a, so that a mix-up of layers, sides or units shows."""
    pairs = np.outer(np.arange(1, 9), np.arange(1, 9)).astype(float)
    by_layer = np.array([2.0, 5.0])[:, None, None]
    table = CostTable(
        names=("conv", "fc"),
        values={"traffic": by_layer * pairs, "latency": by_layer**2 * pairs},
        hardware="made up",
        batch=4,
        roofs=Roofs(bandwidth=1e3, peak=1e6 / pairs),
    )
    return replace(table, **changes)  # type: ignore[arg-type]


def text_of(table: Table, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def trial(accuracy: float) -> Trial:
    return Trial("88", "88", "88", "88", accuracy, 1.0, 0.5, 0.1, False)


def searched(*accuracies: float) -> History:
    history = History()
    for accuracy in accuracies:
        history.add(trial(accuracy))
    return history


def assert_picture(path: Path, least: int = 300) -> None:
    """The file decodes, is not tiny and holds more than one colour."""
    image = matplotlib.image.imread(path)
    assert image.shape[0] > least
    assert image.shape[1] > least
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10


# -- rendering ---------------------------------------------------------------------------------


def test_a_line_shows_decided_bits_as_digits_and_open_ones_as_dots() -> None:
    bits = np.array([[8, 8], [3, 4], [5, 6]])
    decided = np.array([[True, True], [True, False], [False, False]])
    line = ansi(bits, decided, 0.5)
    assert line.startswith("w 83.  a 8..  [")
    assert line.count("#") == 10
    assert "50 %" in line
    assert "\n" not in line


@pytest.mark.parametrize(("cost", "marks", "end"), [(0.0, 0, "]"), (1.0, 20, "]"), (1.2, 20, ">")])
def test_the_text_bar_is_full_at_the_budget_and_open_beyond(
    cost: float, marks: int, end: str
) -> None:
    line = ansi(uniform(3, 4, 4), np.ones((3, 2), bool), cost)
    assert line.count("#") == marks
    assert line[line.index("[") + 21] == end
    assert f"{100 * cost:.0f} %" in line


@pytest.mark.parametrize("layers", [1, 2, 28, 54, 200])
def test_an_image_has_one_size_per_network_that_video_encoders_take(layers: int) -> None:
    shapes = set()
    for width in (1, 8):
        for done in (False, True):
            for cost in (0.0, 1.2, 50.0):
                image = rgb_array(uniform(layers, width, width), np.full((layers, 2), done), cost)
                assert image.dtype == np.uint8
                assert image.shape[2] == 3
                shapes.add(image.shape)
    assert len(shapes) == 1
    height, width, _ = shapes.pop()
    assert height % 16 == 0
    assert width % 16 == 0


def test_every_image_is_a_fresh_array() -> None:
    bits, decided = uniform(5, 4, 4), np.ones((5, 2), bool)
    first = rgb_array(bits, decided, 0.7)
    kept = first.copy()
    second = rgb_array(bits, decided, 0.7)
    assert not np.shares_memory(first, second)
    second[:] = 0
    assert np.array_equal(first, kept)
    assert np.array_equal(rgb_array(bits, decided, 0.7), kept)


def test_images_differ_in_bits_in_sides_in_what_is_decided_and_in_cost() -> None:
    base = uniform(5, 4, 4)
    more_w, more_a = base.copy(), base.copy()
    more_w[2, 0] += 1
    more_a[2, 1] += 1
    done = np.ones((5, 2), bool)
    some = done.copy()
    some[3, 1] = False
    drawn = [
        rgb_array(bits, decided, cost)
        for bits, decided, cost in (
            (base, done, 0.7),
            (more_w, done, 0.7),
            (more_a, done, 0.7),
            (base, some, 0.7),
            (base, done, 0.9),
            (base, done, 1.1),
        )
    ]
    assert len({image.tobytes() for image in drawn}) == len(drawn)


def test_the_height_of_a_bar_is_proportional_to_the_bits() -> None:
    def blue(width: int) -> int:
        image = rgb_array(uniform(10, width, 8), np.ones((10, 2), bool), 0.1)
        return int((image == (0, 114, 178)).all(axis=2).sum())

    assert [blue(width) for width in range(1, 9)] == [blue(1) * width for width in range(1, 9)]


def test_an_image_takes_less_than_two_milliseconds() -> None:
    bits, decided = uniform(28, 5, 5), np.ones((28, 2), bool)
    best = min(_seconds(bits, decided) for _ in range(20))  # the machine may be shared
    assert best < 2e-3


def _seconds(bits: np.ndarray, decided: np.ndarray) -> float:
    start = time.perf_counter()
    rgb_array(bits, decided, 0.9)
    return time.perf_counter() - start


# -- roofline ----------------------------------------------------------------------------------


def test_roofline_points_are_those_computed_by_hand() -> None:
    bits = np.array([[2, 3], [4, 5]])
    # conv: 4 x 1152 MACs, traffic 2 x 6 bytes, latency 4 x 6 ms; fc: 4 x 128, 5 x 20, 25 x 20
    expected = [[4608 / 12, 4608 / 0.024], [512 / 100, 512 / 0.5]]
    np.testing.assert_allclose(roofline_points(two_layers(), two_costs(), bits), expected)


@pytest.mark.parametrize("missing", ["traffic", "latency", "roofs"])
def test_a_roofline_says_what_the_hardware_lacks(missing: str, tmp_path: Path) -> None:
    costs = two_costs()
    if missing == "roofs":
        costs = replace(costs, roofs=None)
    else:
        costs = replace(costs, values={k: v for k, v in costs.values.items() if k != missing})
    with pytest.raises(InputError, match=f"'made up' has no {missing}, which"):
        plot_roofline(two_layers(), costs, {"8 bits": uniform(2, 8, 8)}, tmp_path / "roofline")
    assert not list(tmp_path.iterdir())


def test_a_layer_without_traffic_has_no_point() -> None:
    costs = two_costs()
    costs.values["traffic"][1] = 0
    with pytest.raises(InputError, match="traffic of layer 'fc' is zero"):
        roofline_points(two_layers(), costs, uniform(2, 8, 8))


@pytest.mark.parametrize("hardware", ["bismo-edge", "bismo-cloud", "bitfusion"])
def test_no_layer_is_above_the_roofs_of_its_bits(hardware: str) -> None:
    layers = mobilenet_v1()
    costs = load_hardware(hardware).cost_table(layers)
    assert costs.roofs is not None
    rng = np.random.default_rng(0)
    for bits in (uniform(28, 8, 8), rng.integers(2, 9, (28, 2))):
        used = bits.copy()
        used[0, 1] = 8  # BitFusion reads the image at 8 bits
        intensity, performance = roofline_points(layers, costs, used).T
        peak = costs.roofs.peak[used[:, 0] - 1, used[:, 1] - 1]
        assert (performance <= np.minimum(peak, intensity * costs.roofs.bandwidth) * 1.0001).all()


def test_a_roofline_is_written_as_png_and_svg(tmp_path: Path) -> None:
    layers = mobilenet_v1()
    costs = load_hardware("bismo-cloud").cost_table(layers)
    policies = {"8 bits": uniform(28, 8, 8), "policy": uniform(28, 4, 4)}
    png, svg = plot_roofline(layers, costs, policies, tmp_path / "roofline")
    assert_picture(png)
    assert svg.read_text(encoding="utf-8").count("<path") > 50


@pytest.mark.parametrize("name", ["v1.0", "roofline.png", "roofline.svg"])
def test_only_a_picture_s_suffix_is_taken_from_the_name(name: str, tmp_path: Path) -> None:
    paths = plot_roofline(two_layers(), two_costs(), {"8 bits": uniform(2, 8, 8)}, tmp_path / name)
    stem = name.removesuffix(".png").removesuffix(".svg")
    assert paths == (tmp_path / f"{stem}.png", tmp_path / f"{stem}.svg")
    assert all(path.exists() for path in paths)


def test_the_same_roofline_gives_the_same_png(tmp_path: Path) -> None:
    for name in ("a", "b"):
        plot_roofline(two_layers(), two_costs(), {"8 bits": uniform(2, 8, 8)}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_roofline_compares_two_policies_at_most(tmp_path: Path) -> None:
    bits = uniform(2, 8, 8)
    with pytest.raises(InputError, match="one policy or two, not 3"):
        plot_roofline(two_layers(), two_costs(), dict.fromkeys("abc", bits), tmp_path / "x")


# -- plots -------------------------------------------------------------------------------------


def test_bits_are_plotted_for_several_policies(tmp_path: Path) -> None:
    policies = {"uniform": uniform(28, 4, 4), "found": uniform(28, 3, 6)}
    assert_picture(plot_bits(policies, mobilenet_v1(), tmp_path / "bits.png"))


@pytest.mark.parametrize("count", [5, 20])
def test_a_legend_is_whole_in_narrow_plots_too(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (conv("a", 8, 8, 4, kernel=3), conv("b", 8, 8, 4), conv("c", 8, 8, 4, groups=8))
    kinds = (*kinds, conv("d", 8, 8, 4, groups=2), linear("e", 8, 8))
    layers = tuple(replace(kinds[i % 5], name=f"layer{i}") for i in range(count))
    drawn = []
    monkeypatch.setattr(
        "haq_env.report.plots.save_figure", lambda figure, path: drawn.append(figure)
    )
    plot_bits({"found": uniform(count, 4, 4)}, LayerTable("kinds", layers), tmp_path / "x.png")
    drawn[0].canvas.draw()
    (legend,) = drawn[0].legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 5
    assert box.x0 >= 0
    assert box.x1 <= drawn[0].bbox.width


def test_a_policy_for_other_layers_is_not_plotted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have the shape"):
        plot_bits({"found": uniform(3, 4, 4)}, mobilenet_v1(), tmp_path / "bits.png")
    with pytest.raises(InputError, match="no policy"):
        plot_bits({}, mobilenet_v1(), tmp_path / "bits.png")


@pytest.mark.parametrize(
    "accuracies", [(90.0,), (90.0, 90.0), (90.0, 10.0, 92.0, 91.0, 92.5), tuple(range(1, 99))]
)
def test_searches_of_any_length_are_plotted(accuracies: tuple[float, ...], tmp_path: Path) -> None:
    path = plot_search(searched(*accuracies), 90.0, 95.0, tmp_path / "search.png")
    assert_picture(path)


def test_a_search_without_evaluations_is_not_plotted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no evaluation"):
        plot_search(searched(), 90.0, 95.0, tmp_path / "search.png")


def test_plots_say_which_formats_and_places_do_not_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"suffix must be one of .*png"):
        plot_search(searched(90.0), 90.0, 95.0, tmp_path / "search.doc")
    with pytest.raises(InputError, match="cannot write"):
        plot_search(searched(90.0), 90.0, 95.0, tmp_path / "no" / "search.png")


def test_plotting_leaves_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_search(searched(90.0, 91.0), 90.0, 95.0, tmp_path / "search.png")
    assert plt.get_fignums() == before


# -- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", ["bismo-edge", "bitfusion", "size"])
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_names_and_totals_are_whole_at_every_width(hardware: str, width: int) -> None:
    layers = mobilenet_v1()
    costs = load_hardware(hardware).cost_table(layers)
    text = text_of(cost_table(layers, costs, uniform(28, 4, 4), width=width), width)
    assert all(len(line) <= width for line in text.splitlines())
    for name in layers.names:
        assert f" {name} " in text
    assert "…" not in text
    total = float(costs.cost(uniform(28, 4, 4), costs.metric))
    assert Scale.of(costs.metric, total).write(total) in text
    assert "100.0 %" in text


def test_shares_and_layers_add_up_to_the_total() -> None:
    layers = mobilenet_v1()
    costs = load_hardware("size").cost_table(layers)
    text = text_of(cost_table(layers, costs, uniform(28, 8, 8)))
    shares = [float(line.split()[-2]) for line in text.splitlines() if line.endswith("% ")]
    assert len(shares) == 30  # layers, what is not quantized, and the total
    assert abs(sum(shares[:-1]) - 100) < 0.05 * 29
    assert shares[-1] == 100.0


def test_a_table_that_is_too_wide_says_which_columns_it_leaves_out() -> None:
    layers = mobilenet_v1()
    costs = load_hardware("bitfusion").cost_table(layers)
    narrow = text_of(cost_table(layers, costs, uniform(28, 8, 8), width=70), 70)
    wide = text_of(cost_table(layers, costs, uniform(28, 8, 8)))
    assert "Columns that the terminal is too narrow for: kind, shape" in narrow
    assert "cycles" in wide
    assert "Left out" not in wide
    assert "3x224² -> 32x112²" in wide


def test_labels_that_belong_to_the_numbers_stand_below_them() -> None:
    layers = two_layers()
    costs = load_hardware("bismo-edge", board_power_w=5.0).cost_table(layers)
    assert "assumed power" in text_of(cost_table(layers, costs, uniform(2, 8, 8)))
    costs = load_hardware("bismo-edge").cost_table(layers)
    assert "No energy: BISMO has no" in text_of(cost_table(layers, costs, uniform(2, 8, 8)))


def test_names_with_brackets_are_no_markup() -> None:
    layers = LayerTable("[/net]", (conv("a[red]", 1, 8, 4), linear("[/b]", 8, 2)))
    costs = load_hardware("bismo-edge").cost_table(layers)
    text = text_of(cost_table(layers, costs, uniform(2, 8, 8)))
    assert "a[red]" in text
    assert "[/b]" in text
    assert "[/net]" in text
    assert "[/x]" in text_of(comparison_table([NetworkRow("[/x]")]))


def test_a_comparison_has_errors_where_there_are_some_and_dashes_where_nothing_is_known() -> None:
    rows = [
        NetworkRow("float", {"val": (98.1, 0.0)}),
        NetworkRow(
            "found", {"val": (97.0, 0.25), "test": (96.5, 0.125)}, {"latency": 0.5, "size": 2048}
        ),
    ]
    lines = text_of(comparison_table(rows)).splitlines()
    cells = [line.split() for line in lines if line.split()[:1] in (["float"], ["found"])]
    assert cells[0] == ["float", "98.10", "-", "-", "-", "-"]
    assert " ".join(cells[1]) == "found 97.00 ± 0.25 96.50 ± 0.12 500.00 - 2.000"
    assert "us" in text_of(comparison_table(rows))
    assert "KiB" in text_of(comparison_table(rows))


def test_seeds_that_agree_have_no_error_whatever_the_last_digit_of_their_mean() -> None:
    equal = Final((), (100 * 437 / 450,) * 3).mean_and_error("test")
    assert equal[1] > 0  # this is why
    text = text_of(comparison_table([NetworkRow("found", {"test": equal})]))
    assert "97.11" in text
    assert "±" not in text


def test_the_cost_that_is_limited_has_a_column_and_one_only() -> None:
    rows = [NetworkRow("found", {}, {"latency": 0.5, "bitops": 2.5e9})]
    text = text_of(comparison_table(rows, (*COMPARED, "bitops")))
    assert "2.500" in text
    assert text_of(comparison_table(rows, (*COMPARED, "latency"))).count("latency") == 1


@pytest.mark.parametrize(
    ("stride", "kind"), [(1, "conv 3x3"), (2, "conv 3x3 /2"), ((1, 2), "conv 3x3 /1x2")]
)
def test_the_table_shows_both_strides_where_they_differ(
    stride: int | tuple[int, int], kind: str
) -> None:
    both = (stride, stride) if isinstance(stride, int) else stride
    layer = replace(conv("a", 8, 8, 8, kernel=3), stride=both)
    layers = LayerTable("one", (layer,))
    costs = load_hardware("bismo-edge").cost_table(layers)
    lines = text_of(cost_table(layers, costs, uniform(1, 8, 8))).splitlines()
    assert any(line.split()[:2] == ["0", "a"] and f" {kind}  " in line for line in lines)


@pytest.mark.parametrize(
    ("metric", "value", "written", "unit"),
    [
        ("latency", 12.3456, "12.346", "ms"),
        ("latency", 1234.0, "1.234", "s"),
        ("latency", 0.0123, "12.300", "us"),
        ("energy", 0.5, "500.00", "uJ"),
        ("size", 3 * 2**20, "3.000", "MiB"),
        ("size", 100, "100", "bytes"),
        ("cycles", 1234567, "1,234,567", ""),
        ("latency", 0.0, "0.000", "ns"),
    ],
)
def test_units_are_those_in_which_numbers_read_well(
    metric: str, value: float, written: str, unit: str
) -> None:
    scale = Scale.of(metric, value)
    assert (scale.write(value), scale.unit) == (written, unit)


def test_small_costs_are_not_shown_as_nothing() -> None:
    assert Scale.of("size", 2**20).write(10) == "<0.001"
    assert Scale.of("size", 2**20).write(0) == "0.000"


def test_the_record_holds_what_the_cost_table_says() -> None:
    layers, costs = two_layers(), two_costs(constants={"latency": 7.0})
    bits = np.array([[2, 3], [4, 5]])
    record = cost_record(layers, costs, bits)
    assert record["totals"]["latency"] == {"value": 4 * 6 + 25 * 20 + 7.0, "unit": "ms"}
    assert record["constants"]["latency"] == 7.0
    assert [layer["costs"]["traffic"] for layer in record["layers"]] == [12.0, 100.0]
    assert [(layer["w_bits"], layer["a_bits"]) for layer in record["layers"]] == [(2, 3), (4, 5)]


def test_descriptions_are_docstrings_without_their_verb() -> None:
    def cloud() -> None:
        """Return HAQ's cloud (see `edge`): a
        machine.

        More.
        """

    assert describe(cloud) == "HAQ's cloud: a machine."
    assert describe(lambda: None) == "(no description)"
