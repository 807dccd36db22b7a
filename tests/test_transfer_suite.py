"""Tracks with a source: what was learned there is used, paid for, and ranked apart."""

import json
import pickle
import re
from dataclasses import replace

import pytest
from leaderboard_report import Report
from leaderboard_verify import Verify
from rich.console import Console
from verified_runs import TRACKS as SEARCHED
from verified_runs import made

from haq_env.agents import transfer_methods
from haq_env.agents.run import search_with_agent
from haq_env.agents.transfer import Source, apply_agent
from haq_env.errors import InputError
from haq_env.evaluation.measuring import Measurer
from haq_env.leaderboard.charts import page_data
from haq_env.leaderboard.page import page
from haq_env.leaderboard.protocol import SEARCH, TRACKS, TRANSFER, Cell, Track, find_track
from haq_env.leaderboard.running import find_method, run_cell
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.submission import Manifest, write_submission
from haq_env.leaderboard.suites import by_suite
from haq_env.leaderboard.sweep import cells_of
from haq_env.leaderboard.table import markdown
from haq_env.leaderboard.verified import Verified
from haq_env.leaderboard.verified_file import read_verified
from haq_env.make import make_env

EDGE = "digits-bismo-edge-w3a2"
TRANSFERS = tuple(name for name, track in TRACKS.items() if track.suite == TRANSFER)
FIRST = Track("first", {"evaluator": "ptq_bn"})
SECOND = Track("second", {"evaluator": "ptq_bn", "hardware": "bismo-cloud"}, FIRST)
LARGER = Track("larger", {"evaluator": "ptq_bn", "network": "mobilenet_v2"}, FIRST)
FEW = 3


@pytest.fixture(autouse=True)
def few(monkeypatch) -> None:
    monkeypatch.setattr(transfer_methods, "LEARNING", FEW)


@pytest.fixture(scope="module")
def verified() -> Verified:
    """Runs on both suites, in one submission."""
    methods = ("random", "transfer-ppo")
    both = made(methods, tracks=(*SEARCHED[:1], *TRANSFERS), seeds=2, budget=50)
    searched = by_suite([both])[SEARCH][0].runs
    assert {run.cell.method for run in searched} == {*methods}  # rankings look at no name
    return both


# -- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "track"),
    [
        pytest.param("ppo", LARGER, marks=pytest.mark.slow),
        pytest.param("residual-ppo", SECOND, marks=pytest.mark.slow),
        ("haq-ddpg", SECOND),
    ],
)
def test_the_second_policy_is_what_the_trained_agent_decides_without_a_search(
    name, track, tmp_path
):
    residual = "-Residual" * name.startswith("residual-")
    algorithm = name.removeprefix("residual-")
    id = f"HAQ-BISMO-Edge{residual}-v0"
    table = {"prior_seed": 4} if residual else {}  # that of the search's seed
    first = make_env(id, evaluator="ptq_bn", **table)
    search_with_agent(first, algorithm, FEW - 1, seed=4, folder=tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"env": id, "algo": algorithm}))
    source = Source.open(tmp_path)
    target = make_env(
        id, **{"hardware": "bismo-edge"} | track.settings, scales=source.scales, **table
    )
    decided = apply_agent(source, target)[1]
    task = track.task()
    history = find_method(f"transfer-{name}", track)(task, 4, 4)
    assert len(history) == 4
    assert (history[0].bits == task.uniform()).all()
    assert (history[1].w_bits, history[1].a_bits) == (decided.w_bits, decided.a_bits)
    assert history[1].accuracy == decided.accuracy


@pytest.mark.slow
def test_what_was_learned_on_the_source_is_the_charge_and_nothing_is_measured_twice(
    tmp_path, monkeypatch
):
    cell = Cell("second", "transfer-ppo", 0, 3)
    plain = run_cell(SECOND, cell, tmp_path)
    assert (plain.evaluations, plain.charge) == (3, FEW)
    tables = run_cell(SECOND, replace(cell, method="transfer-residual-ppo"), tmp_path)
    assert tables.charge > FEW + 1
    assert run_cell(SECOND, replace(cell, evaluations=1), tmp_path).charge == 0

    def never(*_: object) -> None:
        raise AssertionError("a policy was measured twice")

    monkeypatch.setattr(Measurer, "measure", never)
    again = run_cell(FIRST, Cell("first", "ppo", 0, FEW), tmp_path)  # it is the same search
    assert again.evaluations == FEW
    assert replace(run_cell(SECOND, cell, tmp_path), seconds=plain.seconds) == plain


@pytest.mark.slow
@pytest.mark.parametrize("measured", [FEW - 1, FEW + 2])  # on the source, and on the track
def test_a_transfer_run_that_was_killed_begins_anew_and_gives_the_same(
    tmp_path, monkeypatch, measured
):
    cell = Cell("second", "transfer-haq-ddpg", 2, 5)
    whole = run_cell(SECOND, cell, tmp_path / "whole")
    left, measure = [measured], Measurer.measure

    def killed(self, *args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return measure(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run_cell(SECOND, cell, tmp_path / "killed")
    again = run_cell(SECOND, cell, tmp_path / "killed")
    assert replace(again, seconds=whole.seconds) == whole


def test_a_method_that_learns_before_is_refused_where_there_is_nothing_to_learn_on(tmp_path):
    complaint = "transfer-sac learns on another track first, and .* has none for that"
    with pytest.raises(InputError, match=complaint):
        cells_of((*TRANSFERS, EDGE), ("random", "transfer-sac"), (0,))
    with pytest.raises(InputError, match=complaint):
        run_cell(FIRST, Cell("first", "transfer-sac", 0, 5), tmp_path)
    with pytest.raises(InputError, match="unknown method 'transfer-random'"):
        cells_of(TRANSFERS, ("transfer-random",), (0,))
    assert list(tmp_path.iterdir()) == []


def test_a_track_reaches_another_process_with_its_source():
    for name in TRANSFERS:
        assert pickle.loads(pickle.dumps(find_track(name))) == find_track(name)


def test_runs_are_as_long_as_their_suite_judges_them():
    cells = cells_of((EDGE, *TRANSFERS), ("random",), (0,))
    lengths = {cell.track: cell.evaluations for cell in cells}
    assert lengths == {EDGE: 400, **dict.fromkeys(TRANSFERS, 50)}
    assert {cell.evaluations for cell in cells_of((EDGE, *TRANSFERS), ("random",), (0,), 7)} == {7}


# -- tables ------------------------------------------------------------------------------------


def test_suites_never_rank_together(verified):
    with pytest.raises(InputError, match="search and transfer do not rank together"):
        Standings([verified])
    parts = by_suite([verified])
    assert list(parts) == [SEARCH, TRANSFER]
    found = {suite: Standings(part, repetitions=20) for suite, part in parts.items()}
    for suite, standings in found.items():
        assert {find_track(track).suite for track in standings.anchors} == {suite}
        assert {row.tracks for row in standings.rows} == {(len(standings.anchors),) * 2}
        assert all(
            list(row.at) == [n for n in suite.checkpoints if n <= 50] for row in standings.rows
        )
    assert found[TRANSFER].main == 50


def test_a_suite_reads_the_same_whether_or_not_another_one_has_runs(verified):
    parts = by_suite([verified])
    for suite, other in ((SEARCH, TRANSFER), (TRANSFER, SEARCH)):
        alone, both = markdown(parts[suite]), markdown(parts[suite], others=[other])
        (more,) = re.findall(r"Tables of other suites, which do not compare: .*\n\n", both)
        assert both.replace(more, "") == alone
        assert other.name in more


def test_a_refused_run_is_told_in_the_table_of_its_suite(verified):
    runs = [run for run in verified.runs if run.cell.track in TRANSFERS]
    reason = f"a forged on {EDGE}, seed 1"  # text of no run
    lines = tuple(f"refused: {run.cell}; {reason}" for run in runs[:2])
    kept = tuple(run for run in verified.runs if run not in runs[:2])
    parts = by_suite([replace(verified, runs=kept, refused=lines)])
    assert {suite: len(part.refused) for suite, (part,) in parts.items()} == {
        SEARCH: 0,
        TRANSFER: 2,
    }
    none = replace(verified, runs=tuple(r for r in kept if r not in runs), refused=lines)
    assert list(by_suite([none])) == [SEARCH]


def test_a_device_that_two_networks_run_on_is_shown_with_each_of_them(verified):
    part = by_suite([verified])[TRANSFER]
    data = page_data(Standings(part, repetitions=20))
    names = [machine["name"] for machine in data["machines"]]
    assert len(names) == 3
    assert len(data["pareto"]) == 3
    for track in data["tracks"]:
        layers = find_track(track["name"]).task().layers
        assert layers.network in names[track["machine"]]
        assert len(data["machines"][track["machine"]]["layers"]) == len(layers)


def test_links_of_the_pages_lead_to_each_other(verified):
    parts = by_suite([verified])
    for suite, other, links in (
        (SEARCH, TRANSFER, ("transfer/README.md", "transfer/index.html")),
        (TRANSFER, SEARCH, ("../README.md", "../index.html")),
    ):
        standings = Standings(parts[suite], repetitions=20)
        assert f"]({links[0]})" in markdown(parts[suite], standings, [other])
        assert f'href="{links[1]}"' in page(parts[suite], standings, [other])


# -- all of it ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_submission_with_runs_of_both_suites_is_verified_and_reported(tmp_path, capsys):
    cells = [
        Cell("digits-transfer-budget", "transfer-ppo", 0, 3),
        Cell("digits-transfer-budget", "random", 0, 3),
        Cell(EDGE, "random", 0, 2),
    ]
    outcomes = [run_cell(find_track(cell.track), cell, tmp_path) for cell in cells]
    folder = tmp_path / "entry"
    write_submission(folder, Manifest("A test", ("Ada",)), outcomes)
    assert Verify((folder,), cache=tmp_path / "verify.sqlite", jobs=1).run(Console()) == 0
    found = read_verified(folder / "verified.json")
    (learned,) = (run for run in found.runs if run.cell.method == "transfer-ppo")
    assert learned.charge == FEW
    assert learned.best_after(2).test  # what it decided without a search has a score
    again = Verify((folder,), check=True, cache=tmp_path / "verify.sqlite", jobs=1)
    assert again.run(Console()) == 0
    assert Report((folder,), tmp_path / "report").run(Console()) == 0
    texts = [tmp_path / "report" / suite.folder / "README.md" for suite in (SEARCH, TRANSFER)]
    search, transfer = (path.read_text(encoding="utf-8") for path in texts)
    assert "transfer-ppo" not in search
    assert "transfer-ppo" in transfer
    for path, text in zip(texts, (search, transfer), strict=True):
        for link in re.findall(r"\]\(([^)]+README\.md)\)", text):
            assert (path.parent / link).resolve() in texts
