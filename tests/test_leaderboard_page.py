"""The standings and the page: made from verified numbers alone, and shown in a real browser."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import leaderboard
import numpy as np
import pytest
from leaderboard_folders import REPORT, SUBMISSIONS
from leaderboard_report import Report
from required import do_without
from rich.console import Console
from scripts import run_main
from verified_runs import TRACKS, made

from haq_env.errors import InputError
from haq_env.leaderboard.charts import _curves, _pareto
from haq_env.leaderboard.curves import curves
from haq_env.leaderboard.page import page
from haq_env.leaderboard.protocol import Cell, Improvement, checkpoints, find_track
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.table import markdown
from haq_env.leaderboard.verified import Scored, Verified, VerifiedRun
from haq_env.leaderboard.verified_file import read_all, read_verified, write_verified
from haq_env.report.roofline import roofline_points
from haq_env.report.runs import read_csv, write_csv
from haq_env.report.tensorboard import TAG, write_tensorboard

EDGE = tuple(f"digits-bismo-edge-{budget}" for budget in ("w3a2", "w4a2", "w6a2"))  # by cost
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>|`*_["


@pytest.fixture(scope="module")
def verified() -> Verified:
    return made(("random", "evolution", "sac"))


# -- standings ---------------------------------------------------------------------------------


def test_the_uniform_policy_scores_0_and_the_best_known_1(verified):
    found = Standings([verified], repetitions=50)
    for track, anchor in found.anchors.items():
        ends = [
            run.best_after(count)
            for run in verified.runs
            if run.cell.track == track
            for count in checkpoints(run.cell)
        ]
        assert anchor.score(anchor.uniform) == 0
        assert max(anchor.score(policy) for policy in ends) == anchor.score(anchor.best) == 1
    assert found.rows[0].at[100].value == max(row.at[100].value for row in found.rows)
    for row in found.rows:
        scores = np.concatenate(found.scores(row.entry, 100))
        assert row.regret.value == pytest.approx(1 - scores.mean())
        assert row.at[100].low <= row.at[100].value <= row.at[100].high


def test_a_better_entry_moves_the_best_known_and_all_others_down(verified):
    better = made(("mine",), "better", gain=2.0)
    alone, both = (Standings(each, repetitions=20) for each in ([verified], [verified, better]))
    rows = {row.entry: row for row in both.rows}
    assert both.rows[0].entry == "mine"
    assert all(rows[row.entry].at[100].value < row.at[100].value for row in alone.rows)
    assert rows["random"].over_leader.value < 0.5


def test_the_table_is_the_same_in_any_order_and_any_process(verified, tmp_path):
    other = made(("sac", "mine"), "other", gain=1.5)
    for each in (verified, other):
        (tmp_path / each.name).mkdir()
        write_verified(each, tmp_path / each.name / "verified.json")
    folders = [tmp_path / "other", tmp_path / "entry"]

    def text_of(entries) -> str:
        return markdown(entries, Standings(entries, repetitions=100))

    text = text_of(read_all(folders))
    assert text == text_of([verified, other]) == text_of([other, verified])
    assert "sac (entry)" in text
    assert "sac (other)" in text
    assert text.startswith("<!-- generated")
    shown = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert len(shown) == 1


def test_a_track_without_anything_better_than_uniform_is_not_scored(verified):
    flat = [
        replace(run, steps=run.steps[:1]) for run in verified.runs if run.cell.track == TRACKS[0]
    ]
    rest = [run for run in verified.runs if run.cell.track != TRACKS[0]]
    flattened = replace(verified, runs=(*flat, *rest))
    found = Standings([flattened], repetitions=20)
    assert list(found.unscored) == [TRACKS[0]]
    assert f"{TRACKS[0]} (nothing better than uniform is known)" in markdown([flattened], found)
    assert {row.tracks for row in found.rows} == {(2, 2)}


def test_an_entry_that_has_not_run_on_all_tracks_has_no_place(verified):
    part = made(("mine",), "part", tracks=TRACKS[:1], gain=3.0)
    row = Standings([verified, part], repetitions=20).rows[-1]
    assert (row.entry, row.tracks, row.at) == ("mine", (1, 3), {})


def test_seeds_that_somebody_has_chosen_give_no_place(verified):
    def only(seeds) -> Verified:
        runs = tuple(
            replace(run, cell=replace(run.cell, method="chosen"))
            for run in verified.runs
            if run.cell.method == "evolution" and run.cell.seed in seeds
        )
        return replace(verified, name="other", runs=runs)

    for seeds in ({2}, {0}, {1, 2, 3}, {0, 1, 3}):
        found = Standings([verified, only(seeds)], repetitions=20)
        (row,) = (r for r in found.rows if r.entry == "chosen")
        assert not row.at
    found = Standings([verified, only({0, 1, 2, 3})], repetitions=20)
    (row,) = (r for r in found.rows if r.entry == "chosen")
    assert row.at


def test_trials_do_not_push_whole_runs_down(verified):
    trials = [made((f"trial-{n}",), f"trial-{n}", budget=30) for n in range(4)]
    found = Standings([verified, *trials], repetitions=50)
    assert found.main == 100
    assert {row.entry for row in found.rows[:3]} == {"random", "evolution", "sac"}


def test_running_for_longer_gives_no_place(verified):
    lazy = made(("lazy",), "lazy", budget=400, gain=1.0)
    runs = tuple(replace(run, steps=run.steps[:1], evaluations=1) for run in lazy.runs)
    found = Standings([verified, replace(lazy, runs=runs)], repetitions=20)
    assert found.main == 100
    assert found.rows[0].entry != "lazy"
    last = next(row for row in found.rows if row.entry == "lazy")
    assert (last.at[400].value, last.over_leader.value < 0.5) == (0, True)
    assert last.regret.value == 1 - np.mean(found.scores("lazy", 100))
    assert "lazy" in markdown([verified, replace(lazy, runs=runs)], found)


def test_an_entry_has_a_score_where_all_its_runs_have_one(verified):
    def shorter(run):
        return replace(run, cell=replace(run.cell, evaluations=60), steps=run.steps[:2])

    runs = tuple(
        shorter(run) if run.cell.method == "sac" and run.cell.seed == 2 else run
        for run in verified.runs
    )
    found = Standings([replace(verified, runs=runs)], repetitions=20)
    rows = {row.entry: row for row in found.rows}
    assert (list(rows["sac"].at), list(rows["random"].at)) == ([50], [50, 100])
    assert (found.main, rows["sac"].regret, rows["sac"].over_baseline) == (100, None, None)
    assert rows["evolution"].over_baseline is not None
    assert "sac" in markdown([replace(verified, runs=runs)])


def test_another_submission_of_random_policies_takes_the_baseline_from_nobody(verified):
    ours, theirs = replace(verified, name="baselines"), made(("random",), "theirs")
    rows = Standings([ours, theirs], repetitions=20).rows
    own = {row.entry: row.over_baseline for row in rows}
    assert own.pop("random (haq-env)") is None
    assert all(value is not None for value in own.values())


def test_random_runs_of_somebody_else_decide_about_no_track(verified):
    track = TRACKS[0]
    ours = replace(verified, name="cifar10")
    theirs = made(("random",), "theirs", tracks=(*TRACKS, "digits-bismo-edge-w4a2"), seeds=1)
    assert [*Standings([ours, theirs], repetitions=20).anchors] == sorted(TRACKS)
    agents = replace(made(("sac",), tracks=TRACKS[:1]), name="agents")
    lone = Standings([agents, made(("random",), "theirs", tracks=TRACKS[:1])], repetitions=20)
    assert [*lone.anchors] == [track]
    assert all(row.over_baseline is None for row in lone.rows)


def test_submissions_of_this_package_are_one_owners(verified):
    later = "digits-bismo-edge-w4a2"
    ours = replace(verified, name="baselines")
    more = replace(made(("random", "sac"), tracks=(later,)), name="more", title="Later")
    found = Standings([ours, more], repetitions=20)
    assert [*found.anchors] == sorted((*TRACKS, later))  # the baseline has run on all of them
    assert {row.entry: row.tracks for row in found.rows} == {
        "random": (4, 4),
        "sac": (4, 4),
        "evolution": (3, 4),
    }
    assert next(row for row in found.rows if row.entry == "sac").submission == "A test; Later"
    seeds = [(run.cell.track, run.cell.seed) for run in found.entries["sac"]]
    assert seeds == sorted(seeds)
    twice = replace(made(("sac",), tracks=TRACKS[:1], seeds=1), name="agents")
    with pytest.raises(InputError, match="is in agents and in baselines: once is enough"):
        Standings([replace(twice, policies=ours.policies, runs=ours.runs[-1:]), ours])


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("__d__ a_b", r"\_\_d\_\_ a_b"),
        ("see https://evil.example now", "see https&#58;//evil.example now"),
        ("www.evil.example, ada@evil.example", "www&#46;evil.example, ada&#64;evil.example"),
        ("<https://evil.example>", "&lt;https&#58;//evil.example>"),
    ],
)
def test_a_title_is_only_text_and_the_address_of_code_is_that_address(title, shown):
    code = "https://git.example/~ada/_search?a=1&b=_c"
    about = {"title": title, "code": code}
    text = markdown([made(("random", "sac"), "theirs", tracks=TRACKS[:1], **about)])
    row = next(line for line in text.splitlines() if line.startswith("| theirs |"))
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert (cells[2], cells[7]) == (shown, f"<{code}>")


def test_names_with_markup_are_text_in_the_table():
    evil = made(
        ("random", "sac"), "evil", authors=(EVIL,), title=EVIL, hardware=EVIL, tracks=TRACKS[:1]
    )
    text = markdown([evil])
    assert "<script" not in text
    assert "<img" not in text
    row = next(line for line in text.splitlines() if line.startswith("| evil"))
    assert row.replace("\\|", "").count("|") == 12  # eleven cells


def test_tuning_runs_do_not_stand_in_the_table(verified):
    first = verified.runs[0]
    tuning = replace(first, cell=replace(first.cell, seed=100))
    with pytest.raises(InputError, match="it is for tuning"):
        Standings([replace(verified, runs=(tuning,))])


def test_a_run_on_a_track_where_nobody_else_ran_takes_no_place_away(verified):
    alone = Standings([verified], repetitions=20)
    track = "digits-bismo-edge-w4a2"
    new = made(("mine",), "mine", tracks=(track,), seeds=1, budget=30, gain=-1.0)
    both = Standings([verified, new], repetitions=20)
    assert [row.entry for row in both.rows][:3] == [row.entry for row in alone.rows]
    assert both.rows[0].at == alone.rows[0].at
    assert both.unscored == {track: "random has too few runs there"}


def test_numbers_of_machines_that_do_not_compare_are_not_put_in_one_table(verified):
    other = replace(made(("mine",), "mine"), arithmetic="0123456789abcdef")
    with pytest.raises(InputError, match=r"entry and mine .* verify all of them on one machine"):
        Standings([verified, other])


def test_what_was_measured_chooses_the_policy_of_a_checkpoint():
    def policy(digit, accuracy) -> Scored:
        return Scored(TRACKS[0], digit * 28, "2" * 28, 0.1, 0.2, accuracy)

    start, lucky, steady, last = (
        policy(*each) for each in zip("2345", (70, 80, 85, 85), strict=True)
    )
    steps = ((1, start), (10, steady), (40, lucky), (60, last))
    run = VerifiedRun(Cell(TRACKS[0], "mine", 0, 100), steps, 100)
    assert run.best_after(5) is start
    assert run.best_after(50) is run.best_after(100) is steady
    assert run.scored == [start, steady]


def test_the_published_table_comes_out_of_the_published_numbers(tmp_path):
    folders = sorted(path.parent for path in SUBMISSIONS.glob("*/verified.json"))
    assert folders
    assert Report(tuple(folders), tmp_path).run(Console()) == 0
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    names = ("README.md", "index.html", "curves.csv")
    assert {Path(name) for name in names} <= made
    there = [path for name in names for path in REPORT.rglob(name)]
    assert {path.relative_to(REPORT) for path in there} == made
    for name in made:
        assert (tmp_path / name).read_bytes() == (REPORT / name).read_bytes(), name


def test_a_disk_that_fills_up_leaves_the_old_table_page_and_curves_together(tmp_path, monkeypatch):
    def report(*names: str):
        folders = [str(SUBMISSIONS / name) for name in names]
        return run_main(leaderboard.main, "report", *folders, "--out", str(tmp_path / "report"))

    assert report("law").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    assert before.keys() == {"README.md", "index.html", "curves.csv"}
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        done = report("law", "seeds")
    file = tmp_path / "report" / "curves.csv"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: cannot write {file}: No space left on device.\n"
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before
    assert report("law", "seeds").returncode == 0  # and with room all three are new ones
    after = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d["policies"][0].__setitem__(5, 101.0), "must be a number from 0 to 100"),
        (lambda d: d["policies"][0].__setitem__(1, "9"), "not of the form"),
        (lambda d: d["runs"][0]["steps"].reverse(), "not in order|begin with evaluation 1"),
        (lambda d: d["runs"][0]["steps"].append([9, 10**6]), "'policy' must be an integer"),
        (lambda d: d["runs"].append(d["runs"][0]), "one run twice"),
        (lambda d: d.update(protocol=2), "the protocol is 2"),
    ],
)
def test_damaged_verified_numbers_are_one_clear_error(verified, tmp_path, change, complaint):
    write_verified(verified, tmp_path / "verified.json")
    document = json.loads((tmp_path / "verified.json").read_text())
    change(document)
    (tmp_path / "verified.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=complaint):
        read_verified(tmp_path / "verified.json")


# -- curves ------------------------------------------------------------------------------------


def test_no_curve_ends_above_the_line_of_the_best():
    found = Standings([made(("random", "evolution"), budget=60)], repetitions=20)
    for track in found.anchors:
        chart = _curves(found, track)
        (best,) = (value for value, name, _ in chart["references"] if name == "best")
        assert best >= max(y for line in chart["lines"] for y in line["y"])


def of_three_budgets() -> Verified:
    """One device with three budgets, told out of order."""
    return made(
        ("random", "sac"), tracks=(EDGE[2], EDGE[0], EDGE[1]), seeds=2, budget=60, gain=-0.5
    )


def test_a_front_has_a_point_for_each_budget_of_a_device_from_the_cheapest_on():
    verified = of_three_budgets()
    found = Standings([verified], repetitions=20)
    tasks = {name: find_track(name).task() for name in reversed(EDGE)}  # not by cost
    ((device, chart),) = _pareto(found, tasks).items()
    assert "bismo-edge" in device
    assert device.endswith(", latency")
    for line, entry in zip(chart["lines"], ("random", "sac"), strict=True):
        assert list(found.entries)[line["index"]] == entry
        for x, y, track in zip(line["x"], line["y"], EDGE, strict=True):  # three, by cost
            runs = [r for r in verified.runs if (r.cell.track, r.cell.method) == (track, entry)]
            ends = [run.best_after(50) for run in runs]  # the last checkpoint of 60 evaluations
            assert len(ends) == 2
            assert x == pytest.approx(np.mean([end.cost_ratio for end in ends]), rel=1e-4)
            assert y == pytest.approx(100 - np.mean([end.score for end in ends]), rel=1e-4)
        assert line["x"] == sorted(line["x"])
    uniform, best = chart["fixed"]
    assert [(each["name"], each["above"]) for each in (uniform, best)] == [
        ("uniform", True),
        ("best known", False),
    ]
    for x, y, track in zip(uniform["x"], uniform["y"], EDGE, strict=True):
        task = tasks[track]
        assert x == pytest.approx(task.cost(task.uniform()) / task.budget.reference, rel=1e-4)
        assert y == pytest.approx(100 - found.anchors[track].uniform.score, rel=1e-4)
    expected = [100 - found.anchors[track].best.score for track in EDGE]
    assert best["y"] == pytest.approx(expected, rel=1e-4)


def test_curves_are_those_of_the_outcomes_and_survive_a_file(verified, tmp_path):
    found = curves(Standings([verified], repetitions=20))
    assert len(found) == len(verified.runs)
    for run in found:
        source = next(
            each
            for each in verified.runs
            if (each.cell.track, each.cell.method, each.cell.seed)
            == (run.task, run.method, run.seed)
        )
        expected = [source.best_after(k).accuracy for k in range(1, source.evaluations + 1)]
        assert run.best_so_far.tolist() == expected
    back = read_csv(write_csv(found, tmp_path / "curves.csv"))
    assert len(back) == len(found)


def test_tensorboard_shows_every_run_with_its_improvements(verified, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = [run for run in curves(Standings([verified], repetitions=20)) if run.seed == 0][:2]
    folder = write_tensorboard(runs, tmp_path / "board")
    for run in runs:
        events = EventAccumulator(
            str(folder / run.task / run.method / "0"), size_guidance={"tensors": 0}
        ).Reload()
        points = {e.step: float(e.tensor_proto.float_val[0]) for e in events.Tensors(TAG)}
        for step, value in points.items():
            assert value == pytest.approx(run.best_so_far[step - 1])
        assert {1, len(run.best_so_far)} <= points.keys()
        assert set(np.flatnonzero(np.diff(run.best_so_far)) + 2) <= points.keys()
    with pytest.raises(InputError, match="is there already"):
        write_tensorboard(runs, folder)


def test_a_report_has_the_curves_of_all_its_runs_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    law, board = SUBMISSIONS / "law", tmp_path / "board"
    argv = ["report", str(law), "--out", str(tmp_path / "report"), "--tensorboard", str(board)]
    done = run_main(leaderboard.main, *argv)
    assert done.returncode == 0, done.stderr
    assert f"Written: {board}\n" in done.stdout
    written = {path.parent.relative_to(board).parts for path in board.rglob("events.out.*")}
    runs = read_csv(tmp_path / "report" / "curves.csv")
    assert written == {(run.task, run.method, str(run.seed)) for run in runs}
    assert len(written) == len(read_verified(law / "verified.json").runs)
    for run in runs:
        events = EventAccumulator(str(board / run.task / run.method / str(run.seed))).Reload()
        last = max(events.Tensors(TAG), key=lambda event: event.step)
        assert last.step == len(run.best_so_far)
        assert float(last.tensor_proto.float_val[0]) == pytest.approx(run.best_so_far[-1])
    again = run_main(leaderboard.main, *argv)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "is there already" in again.stderr


# -- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    try:
        from selenium import webdriver
    except ImportError:
        do_without("browser", "selenium is not installed")
    driver = shutil.which("chromedriver")
    chrome = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not driver or not chrome:
        do_without("browser", "no chromium with its driver is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    yield found
    found.quit()


def write_page(submissions, path: Path) -> Path:
    path.write_text(page(submissions, Standings(submissions)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def path(verified, tmp_path_factory) -> Path:
    return write_page([verified], tmp_path_factory.mktemp("page") / "index.html")


def opened(browser, path: Path, width: int = 1200):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    return browser


def drawn(browser, selector: str) -> list:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.outerHTML)", selector
    )


def choose(browser, id: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", id)).select_by_visible_text(text)


def test_the_page_draws_everything_without_an_error_or_a_request(browser, path):
    opened(browser, path)
    assert browser.get_log("browser") == []
    assert len(drawn(browser, "#curves path.series")) == 3
    assert len(drawn(browser, "#profile path.series")) == 3
    assert len(drawn(browser, "#pareto path.series")) == 3
    assert len(drawn(browser, "#bits rect.bar")) == 2 * 28
    assert len(drawn(browser, "tbody tr")) == 3 + 1
    assert "NaN" not in "".join(drawn(browser, "main"))
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"].split(":")[0]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert "file" in asked  # the log tells requests
    assert asked <= {"file", "data"}


@pytest.mark.parametrize(
    "published", sorted(REPORT.rglob("index.html")), ids=lambda p: p.parent.name
)
def test_every_published_page_draws_all_its_charts_without_an_error(browser, published):
    assert (REPORT / "index.html").exists()
    opened(browser, published)
    assert browser.get_log("browser") == []
    data = json.loads(browser.execute_script("return document.getElementById('data').textContent"))
    shown = next(iter(data["pareto"].values()))
    for chart, lines in (
        ("curves", next(iter(data["curves"].values()))["lines"]),
        ("profile", data["profile"]["lines"]),
        ("pareto", shown["lines"]),
    ):
        assert lines
        assert len(drawn(browser, f"#{chart} path.series")) == len(lines)
    assert len(drawn(browser, "tbody tr")) > len(data["entries"])
    for device in data["pareto"]:  # and all that can be chosen
        choose(browser, "pareto-device", device)
        assert len(drawn(browser, "#pareto path.series")) == len(data["pareto"][device]["lines"])
    for track in data["tracks"]:
        choose(browser, "curve-track", track["name"])
        assert len(drawn(browser, "#curves path.series")) > 0
        choose(browser, "policy-track", track["name"])
        layers = len(data["machines"][track["machine"]]["layers"])
        assert len(drawn(browser, "#bits rect.bar")) == 2 * layers
        assert len(drawn(browser, "#roofline path.layer")) == layers
        assert "NaN" not in "".join(drawn(browser, "main"))
    assert browser.get_log("browser") == []


def test_a_front_of_three_budgets_is_drawn_with_two_segments(browser, tmp_path):
    opened(browser, write_page([of_three_budgets()], tmp_path / "index.html"))
    assert browser.get_log("browser") == []
    paths = browser.execute_script(
        "return [...document.querySelectorAll('#pareto path.series, #pareto path.reference')]"
        ".map((e) => e.getAttribute('d'))"
    )
    assert len(paths) == 2 + 2
    for path in paths:
        points = [tuple(map(float, p)) for p in re.findall(r"([-\d.]+)[ ,]([-\d.]+)", path)]
        assert len(points) == 3, path
        assert points == sorted(points)


def test_curves_of_a_track_follow_its_runs(browser, path, verified):
    opened(browser, path)
    choose(browser, "curve-track", TRACKS[0])
    assert len(drawn(browser, "#curves path.series")) == 3
    labels = drawn(browser, "#curves text")
    uniform = next(run for run in verified.runs if run.cell.track == TRACKS[0]).steps[0][1]
    assert any(">uniform<" in label for label in labels)
    data = json.loads(browser.execute_script("return document.getElementById('data').textContent"))
    line = data["curves"][TRACKS[0]]["lines"][0]
    assert line["x"][0] == 1
    assert line["y"][0] == pytest.approx(uniform.accuracy, abs=0.01)


def test_another_policy_changes_bars_and_roofline_to_its_own(browser, path, verified):
    opened(browser, path)
    for track, method, seed in ((TRACKS[1], "sac", 2), (TRACKS[2], "evolution", 1)):
        before = drawn(browser, "#bits rect.bar"), drawn(browser, "#roofline path.layer")
        choose(browser, "policy-track", track)
        choose(browser, "policy-entry", method)
        choose(browser, "policy-seed", str(seed))
        choose(browser, "policy-count", "100 evaluations")
        assert (drawn(browser, "#bits rect.bar"), drawn(browser, "#roofline path.layer")) != before
        run = next(r for r in verified.runs if r.cell == Cell(track, method, seed, 120))
        policy = run.best_after(100)
        bits = Improvement(1, policy.w_bits, policy.a_bits, 0.0).bits
        shown = browser.execute_script(
            "return [...document.querySelectorAll('#bits rect.bar')].map((e) => +e.dataset.bits)"
        )
        assert np.array_equal(np.reshape(shown, (-1, 2)), bits)
        points = browser.execute_script(
            "return [...document.querySelectorAll('#roofline path.layer')]"
            ".map((e) => [+e.dataset.intensity, +e.dataset.performance])"
        )
        task = find_track(track).task()
        np.testing.assert_allclose(
            points, roofline_points(task.layers, task.costs, bits), rtol=1e-4
        )
        assert f"{policy.score:.2f} %" in browser.find_element("id", "facts").text


def test_a_page_with_two_networks_draws_the_layers_of_each(browser, tmp_path):
    tracks = ("digits-transfer-network", "digits-transfer-budget")
    both = made(("random", "transfer-ppo"), tracks=tracks, seeds=2, budget=50)
    opened(browser, write_page([both], tmp_path / "index.html"))
    for track, layers in zip(tracks, (53, 28), strict=True):
        choose(browser, "policy-track", track)
        assert len(drawn(browser, "#bits rect.bar")) == 2 * layers
        assert len(drawn(browser, "#roofline path.layer")) == layers
    choose(browser, "policy-count", "2 evaluations")
    assert browser.get_log("browser") == []
    assert browser.title == "haq-env leaderboard: transfer"


def test_an_entry_is_hidden_and_shown_with_the_keyboard_alone(browser, path):
    from selenium.webdriver.common.keys import Keys

    opened(browser, path)
    button = browser.find_element("css selector", "#legend button")
    for pressed, count in (("false", 2), ("true", 3)):
        button.send_keys(Keys.ENTER)
        assert button.get_attribute("aria-pressed") == pressed
        assert len(drawn(browser, "#curves path.series")) == count


@pytest.mark.parametrize("width", [400, 800, 1600])
def test_the_page_fits_a_telephone_and_a_wide_screen(browser, path, width):
    opened(browser, path, width)
    wide = browser.execute_script(
        "const charts = [...document.querySelectorAll('.chart svg')];"
        "return [document.documentElement.scrollWidth, "
        "...charts.map((chart) => chart.getBoundingClientRect().right)]"
    )
    assert len(wide) == 6
    assert max(wide) <= width


def test_light_and_dark_screens_can_both_be_read(browser, path):
    def colours() -> tuple[float, float]:
        def luminance(colour: str) -> float:
            levels = [float(n) / 255 for n in colour[colour.index("(") + 1 : -1].split(",")[:3]]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in levels]
            return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

        style = "getComputedStyle(document.querySelector('{}')).{}"
        back, ink = browser.execute_script(
            f"return [{style.format('section', 'backgroundColor')}, {style.format('td', 'color')}]"
        )
        return luminance(back), luminance(ink)

    opened(browser, path)
    backs = {}
    for scheme in ("dark", "light"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        backs[scheme], ink = colours()
        darker, lighter = sorted((backs[scheme], ink))
        assert (lighter + 0.05) / (darker + 0.05) > 7  # WCAG AAA
    assert backs["dark"] < backs["light"]


def test_names_with_code_in_them_are_text_and_never_run(browser, tmp_path):
    about = {"title": EVIL, "authors": (EVIL,), "environment_changed": EVIL, "hardware": EVIL}
    evil = made((EVIL, "random"), EVIL, tracks=TRACKS[:1], seeds=2, **about)
    opened(browser, write_page([evil], tmp_path / "index.html"))
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []
    assert len(drawn(browser, "#curves path.series")) == 2
    assert not drawn(browser, "img")
    assert EVIL in browser.find_element("id", "legend").text
    assert EVIL in browser.find_element("tag name", "body").text


def test_no_script_but_its_own_may_run_in_the_page(browser, path, tmp_path):
    text = path.read_text(encoding="utf-8")
    injected = text.replace("</main>", "<script>window.hacked = 1</script></main>")
    (tmp_path / "index.html").write_text(injected, encoding="utf-8")
    opened(browser, tmp_path / "index.html")
    assert browser.execute_script("return window.hacked") is None
    assert any("Content Security Policy" in each["message"] for each in browser.get_log("browser"))


def test_the_page_is_one_file_and_the_same_every_time(path, verified, tmp_path):
    text = path.read_bytes()
    assert write_page([verified], tmp_path / "again.html").read_bytes() == text
    assert b"http://" not in text.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in text
    assert b" src=" not in text
