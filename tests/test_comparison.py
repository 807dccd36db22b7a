"""A comparison says what runs have reached, who beats whom, and what is missing."""

import io
import math

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from haq_env.errors import InputError
from haq_env.report.comparison import summary
from haq_env.report.comparison_plots import plot_curves, plot_profile
from haq_env.report.comparison_tables import markdown, table
from haq_env.report.runs import Reference, Run, read_csv, write_csv

EDGE = Reference("edge", "top-1, %", uniform=70.0, best_known=90.0)
CLOUD = Reference("cloud", "top-1, %", uniform=50.0, best_known=59.0, optimum=60.0)


def made(method, ends, task="edge", start=70.0, **more):
    """Runs that leave uniform at evaluation 3 and reach their end at evaluation 4."""
    return [
        Run(task, method, seed, np.array([start, start, (start + end) / 2, end]), **more)
        for seed, end in enumerate(ends)
    ]


def some():
    return [
        *made("random", [71.0, 72.0, 73.0, 74.0]),
        *made("evolution", [80.0, 81.0, 83.0, 99.0], seconds=2.0, hits=3),
        *made("ilp", [90.0, 90.0], charge=29.0),
        *made("uniform", [70.0, 70.0, 70.0, 70.0]),
    ]


def by_method(rows):
    return {row.method: row for row in rows}


def text_of(rows, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(table(rows))
    return console.file.getvalue()


# -- estimates ---------------------------------------------------------------------------------


def test_methods_are_ordered_by_what_they_reach():
    rows = summary(some(), EDGE, methods=("bayes", "ilp"), repetitions=50)
    assert [row.method for row in rows] == ["ilp", "evolution", "random", "uniform", "bayes"]
    found = by_method(rows)
    assert found["evolution"].best.value == 82.0  # (81 + 83) / 2
    assert found["evolution"].regret.value == 4.25  # 90 minus the mean of 80, 81, 83 and 99
    assert found["ilp"].seeds == (2, 2)
    assert found["ilp"].charge == 29.0
    assert found["evolution"].seconds == 2.0
    assert found["evolution"].hits == 3.0
    assert found["random"].seconds is None
    assert found["bayes"].best is None


def test_earlier_evaluations_are_reported_and_those_beyond_the_end_are_not():
    row = by_method(summary(some(), EDGE, counts=(1, 3, 4, 50), repetitions=50))["evolution"]
    assert {count: found.value for count, found in row.at.items()} == {1: 70.0, 3: 76.0}
    assert row.evaluations == (4, 4)


def test_methods_are_compared_with_those_baselines_that_have_run():
    runs = [run for run in some() if run.method != "uniform"]
    found = by_method(summary(runs, EDGE, repetitions=50))
    assert found["ilp"].over["random"].value == 1.0
    assert found["ilp"].over["evolution"].value == 0.75  # 90 beats three of four
    assert found["ilp"].over["uniform"] is None
    assert found["evolution"].over["evolution"] is None


def test_uniform_is_beaten_by_the_first_strictly_better_evaluation():
    curves = [[70, 70, 71, 71], [70, 75, 75, 75], [70, 70, 70, 70]]
    runs = [Run("edge", "x", seed, np.array(c, float)) for seed, c in enumerate(curves)]
    assert summary(runs, EDGE, repetitions=5)[0].beats_uniform == 3.0  # of 3, 2 and never
    assert summary(runs[2:], EDGE, repetitions=5)[0].beats_uniform == math.inf
    # Where finetuning has noise, a lucky uniform policy of the run's own is no improvement.
    lucky = Run("edge", "x", 0, np.array([70.5, 70.5, 70.5, 70.6]))
    assert summary([lucky], EDGE, repetitions=5)[0].beats_uniform == 4.0


def test_a_search_that_stops_early_keeps_its_best_and_says_so():
    short = Run("edge", "short", 0, np.array([70.0, 88.0]))
    rows = summary([*some(), short], EDGE, repetitions=50)
    assert by_method(rows)["short"].best.value == 88.0
    assert "shortest run): short (2)" in text_of(rows)


def test_losses_are_compared_the_other_way_round():
    loss = Reference("edge", "error, %", 30.0, 10.0, higher_is_better=False)
    runs = [Run("edge", run.method, run.seed, 100 - run.best_so_far) for run in some()]
    up, down = (
        by_method(summary(some(), EDGE, repetitions=50)),
        by_method(summary(runs, loss, repetitions=50)),
    )
    assert list(up) == list(down)
    for name, row in down.items():
        assert row.best.value == pytest.approx(100 - up[name].best.value)
        assert row.best.low == pytest.approx(100 - up[name].best.high)
        assert row.regret.value == pytest.approx(up[name].regret.value)
        assert row.over == up[name].over
        assert row.beats_uniform == up[name].beats_uniform


def test_several_tasks_are_put_on_one_scale_from_uniform_to_the_target():
    runs = [*made("x", [80.0, 90.0]), *made("x", [55.0, 60.0], task="cloud", start=50.0)]
    row = summary(runs, [EDGE, CLOUD], repetitions=200)[0]
    # Halfway and all the way in both tasks; the optimum of the second is certified.
    assert row.best.value == 0.75  # 0.5 0.5 1 1: (0.5 + 1) / 2
    assert row.regret.value == 0.25
    assert row.target == "best known or certified optimum"
    flat = Reference("cloud", "top-1, %", 50.0, 50.0)
    with pytest.raises(InputError, match="'cloud' cannot be normalised"):
        summary(runs, [EDGE, flat], repetitions=5)


def test_a_method_that_has_not_run_everywhere_is_not_compared():
    runs = [*some(), *made("random", [51.0, 52.0], task="cloud", start=50.0)]
    rows = summary(runs, [EDGE, CLOUD], repetitions=50)
    assert rows[0].method == "random"
    assert rows[0].seeds == (2, 4)
    assert [row.best for row in rows[1:]] == [None] * 3
    assert "1 of 2 tasks" in text_of(rows)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no run"),
        (made("x", [80.0]) * 2, "run of 'x' on 'edge' with seed 0 is there twice"),
        (made("x", [80.0], task="moon"), "no reference for this task"),
        ([Run("edge", "x", 0, np.array([70.0, 60.0]))], "gets worse"),
    ],
)
def test_runs_that_do_not_compare_are_refused(runs, message):
    for use in (summary, lambda *a: plot_curves(*a, "x.png"), lambda *a: plot_profile(*a, "x.png")):
        with pytest.raises(InputError, match=message):
            use(runs, EDGE)


@pytest.mark.parametrize("curve", [[], [[1.0]], [1.0, math.nan], [1.0, 2.0, 1.5]])
def test_a_best_so_far_that_is_none_is_refused(curve):
    with pytest.raises(InputError, match="run of 'x' on 'edge' with seed 0: the best so far"):
        Run("edge", "x", 0, np.array(curve))


def test_a_best_known_beyond_the_optimum_is_refused():
    with pytest.raises(InputError, match="better than the optimum"):
        Reference("edge", "top-1, %", 70.0, 91.0, optimum=90.0)


# -- tables ------------------------------------------------------------------------------------


def test_tables_fit_100_columns_and_show_all():
    runs = [
        Run(run.task, name, run.seed, np.repeat(run.best_so_far, 75), 29.0, 1234.5, 17)
        for run in some()
        for name in [{"ilp": "greedy-sensitivity"}.get(run.method, run.method)]
    ]
    shown = text_of(summary(runs, EDGE, methods=("bayes",), repetitions=50))
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("greedy-sensitivity  ") for line in lines) == 2
    assert "…" not in shown
    assert shown.count("not run") == 2
    for word in ("50", "100", "200", "300 evaluations", "over uniform", ">300", "1234.5", "17"):
        assert word in shown


def test_markdown_has_the_same_cells_as_the_terminal():
    rows = summary(some(), EDGE, methods=("a|b",), repetitions=50)
    shown = markdown(rows)
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + 5)
    assert all(line.replace("\\|", "").count("|") == lines[0].count("|") for line in lines[:7])
    assert "| a\\|b | not run | - |" in shown
    assert "| ilp | 2 | 90.00 [90.00, 90.00] | 0.00 [0.00, 0.00] |" in shown
    assert "75 [" in shown  # ilp over evolution, in percent


def test_a_single_run_has_no_interval():
    shown = markdown(summary(made("x", [80.0]), EDGE, repetitions=5))
    assert "| x | 1 | 80.00 | 10.00 |" in shown


# -- files -------------------------------------------------------------------------------------


def test_runs_survive_a_file_exactly(tmp_path):
    rng = np.random.default_rng(0)
    runs = [
        Run("edge", 'a, "b"\nc', 3, np.maximum.accumulate(rng.normal(size=50)), 0.1 + 0.2, 1 / 3),
        Run("edge", "a", 0, np.array([1e-300, 1e300]), hits=7),
        Run("cloud", "z", 0, np.array([3.0, 2.0, 2.0, -1 / 3])),
        Run("cloud", "z", 1, np.array([0.0])),
    ]
    path = write_csv(runs, tmp_path / "runs.csv")
    back = read_csv(path)
    expected = sorted(runs, key=lambda run: (run.task, run.method, run.seed))
    for ours, theirs in zip(expected, back, strict=True):
        np.testing.assert_array_equal(ours.best_so_far, theirs.best_so_far, strict=True)
        for name in ("task", "method", "seed", "charge", "seconds", "hits"):
            assert getattr(ours, name) == getattr(theirs, name)
    again = write_csv(list(reversed(back)), tmp_path / "again.csv")
    assert again.read_bytes() == path.read_bytes()


def test_runs_that_cannot_be_written_leave_those_that_were(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv"
    write_csv([Run("task", "random", 0, np.array([1.0, 2.0]))], path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_csv([Run("task", "random", 0, np.array([1.0, 2.0, 3.0]))], path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_file_has_one_short_line_for_each_run(tmp_path):
    curve = np.repeat([70.9, 85.8], [3, 297])
    path = write_csv([Run("edge", "x", 1, curve, seconds=2.5)], tmp_path / "runs.csv")
    assert path.read_text() == (
        "task,method,seed,charge,seconds,hits,evaluations,improvements\n"
        "edge,x,1,0.0,2.5,0,300,1:70.9 4:85.8\n"
    )


HEAD = "task,method,seed,charge,seconds,hits,evaluations,improvements\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "task,method\n",
        HEAD + "edge,x,0,0.0,,0,9,1:7",  # cut off
        HEAD + "edge,x,0,0.0,,0\n",
        HEAD + "edge,x,0,0.0,,0,9,1:7,more\n",
        HEAD + "edge,x,zero,0.0,,0,9,1:7\n",
        HEAD + "edge,x,0,0.0,,0,9,\n",
        HEAD + "edge,x,0,0.0,,0,9,1\n",
        HEAD + "edge,x,0,0.0,,0,9,2:7\n",
        HEAD + "edge,x,0,0.0,,0,9,1:7 5:8 4:9\n",
        HEAD + "edge,x,0,0.0,,0,9,1:7 10:8\n",
        HEAD + "edge,x,0,0.0,,0,999999999999,1:7\n",
        HEAD + "edge,x,0,0.0,,0,9,1:nan\n",
        HEAD + "edge,x,0,-1,,0,9,1:7\n",
        HEAD + "edge,x,0,nan,,0,9,1:7\n",
        HEAD + "edge,x,0,0.0,,0,9,1:7 2:9 3:8\n",
        HEAD + "edge,x,0,0.0,,0,9,1:7\n" * 2,
        HEAD + 'edge,"x,0,0.0,,0,9,1:7\n',
        HEAD + "\n",
    ],
)
def test_a_damaged_file_gives_one_clear_error(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_csv(path)
    assert str(caught.value).startswith(f"{path} is cut off") or "is damaged: " in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_or_not_there_are_refused(tmp_path):
    (tmp_path / "runs.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="is damaged"):
        read_csv(tmp_path / "runs.csv")
    with pytest.raises(InputError, match="cannot read"):
        read_csv(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="cannot write"):
        write_csv(some(), tmp_path / "nowhere" / "runs.csv")


# -- plots -------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def assert_picture(path):
    image = matplotlib.image.imread(path)
    assert min(image.shape[:2]) > 300
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10


def test_curves_show_every_method_and_both_references(tmp_path, drawn):
    assert_picture(plot_curves(some(), EDGE, tmp_path / "curves.png", repetitions=20))
    (figure,) = drawn
    (axes,) = figure.axes
    assert legend(figure) == [
        "ilp: 90.00 (charge 29)", "evolution: 82.00", "random: 72.50", "uniform: 70.00",
    ]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == ["uniform: 70.00", "best known: 90.00"]
    assert axes.get_xscale() == "log"
    lines = {line.get_label().split(":")[0]: line for line in axes.lines}
    np.testing.assert_array_equal(lines["evolution"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(lines["evolution"].get_ydata(), [70, 70, 76, 82])
    np.testing.assert_array_equal(lines["ilp"].get_xdata(), [30, 31, 32, 33])
    assert len(axes.collections) == 4  # a band for each


def test_a_profile_falls_at_the_scores_of_the_runs(tmp_path, drawn):
    runs = [*made("x", [75.0, 80.0, 80.0, 90.0]), *made("y", [85.0])]
    assert_picture(plot_profile(runs, EDGE, tmp_path / "profile.png", repetitions=20))
    (figure,) = drawn
    assert legend(figure) == ["y", "x"]
    line = next(line for line in figure.axes[0].lines if line.get_label() == "x")
    np.testing.assert_allclose(line.get_xdata()[1:], [0.25, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(line.get_ydata()[1:], [1.0, 0.75, 0.25, 0.0])
    with pytest.raises(InputError, match="must be 1 to 4, not 5"):
        plot_profile(runs, EDGE, tmp_path / "profile.png", evaluations=5)


def test_twenty_methods_look_different_and_fit_the_picture(tmp_path, drawn):
    runs = [run for n in range(20) for run in made(f"method-number-{n:02}", [75.0 + n, 76.0 + n])]
    best = Reference("edge", "top-1, %", 70.0, 96.0)
    plot_curves(runs, best, tmp_path / "curves.png", repetitions=5)
    figure = drawn[0]
    looks = {(h.get_color(), h.get_linestyle(), str(h._dash_pattern)) for h in figure.axes[0].lines}
    assert len(looks) == 20 + 1  # and the references
    box, inside = figure.legends[0].get_window_extent(), figure.bbox
    assert box.y0 >= inside.y0
    assert box.x1 <= inside.x1
    extra = made("one-more", [80.0]) + made("two-more", [80.0])
    with pytest.raises(InputError, match="at most 21 methods apart, not 22"):
        plot_curves([*runs, *extra], best, tmp_path / "curves.png")
