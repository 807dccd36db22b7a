"""Sweeps: nothing finished is lost, nothing is run twice, whoever dies and whenever."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import leaderboard as script
import pytest
from leaderboard_figures import COLUMNS, Figure, tell
from leaderboard_log import RUN, Log, done_again
from leaderboard_times import timed
from scripts import Done, run_main

from haq_env.agents.methods import search_method
from haq_env.errors import InputError
from haq_env.evaluation.cache import EvaluationCache
from haq_env.leaderboard import owner as owners
from haq_env.leaderboard.arithmetic import arithmetic
from haq_env.leaderboard.engines import start_engine
from haq_env.leaderboard.outcomes import outcome_from_json, outcome_to_json
from haq_env.leaderboard.owner import Owner
from haq_env.leaderboard.protocol import SEEDS, VERSION, Cell, Improvement, Outcome, Track
from haq_env.leaderboard.running import run_cell
from haq_env.leaderboard.store import (
    APPLICATION,
    ATTEMPTS,
    CACHE,
    DEATHS,
    FILE,
    SCHEMA,
    Store,
)
from haq_env.leaderboard.sweep import sweep

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "leaderboard.py"
FAULTS = ROOT / "benchmarks" / "leaderboard_faults.py"
EDGE = "digits-bismo-edge-w3a2"

CHEAP = Track("cheap", {"evaluator": "ptq_bn"})
BROKEN = Track("broken", {"hardware": "toaster"})
DEADLY_MODULE = """import os, signal
def net():
    os.kill(os.getpid(), signal.SIGKILL)
data = net
"""
DEADLY = Track("deadly", {"network": "deadly:net", "dataset": "deadly:data"})
TRACKS = {track.name: track for track in (CHEAP, BROKEN, DEADLY)}
CELLS = [Cell("cheap", name, seed, 5) for seed in (0, 1) for name in ("random", "evolution")]

linux = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="processes need /proc")


def outcome_of(cell: Cell) -> Outcome:
    steps = (Improvement(1, "83", "28", 100 / 3), Improvement(4, "84", "28", 70.1))
    return Outcome(cell, steps, 5, charge=1 / 3, repeats=2, seconds=0.25)


def table(store: Store) -> list[Outcome]:
    return [replace(outcome, seconds=0.0) for outcome in store.outcomes()]


def leaderboard(*argv: str) -> Done:
    return run_main(script.main, *argv)


# -- the store ---------------------------------------------------------------------------------


def claim_all(folder: Path, cells: list[Cell]) -> list[Cell]:
    store, owner, taken = Store(folder), Owner(), []
    while (cell := store.claim(owner, cells)) is not None:
        taken.append(cell)
        assert store.finish(owner, outcome_of(cell))
    return taken


def test_processes_that_claim_at_the_same_time_never_get_the_same_run(tmp_path):
    cells = [Cell("t", "m", seed, 5) for seed in range(60)]
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:  # one of them makes the file
        futures = [pool.submit(add_and_claim, tmp_path, cells) for _ in range(3)]
        taken = [cell for future in futures for cell in future.result()]
    assert Counter(taken) == Counter(cells)
    rows = Store(tmp_path).rows()
    assert [row.outcome for row in rows] == [outcome_of(cell) for cell in cells]
    assert {row.attempts for row in rows} == {1}


def add_and_claim(folder: Path, cells: list[Cell]) -> list[Cell]:
    Store(folder).add(cells)
    return claim_all(folder, cells)


@linux
def test_the_run_of_a_killed_process_goes_to_the_next_one_at_once(tmp_path):
    cell = CELLS[0]
    store = Store(tmp_path)
    store.add([cell])
    code = f"""
        import time
        from haq_env.leaderboard.owner import Owner
        from haq_env.leaderboard.protocol import Cell
        from haq_env.leaderboard.store import Store
        assert Store({str(tmp_path)!r}).claim(Owner(), [{cell!r}])
        print("mine", flush=True)
        time.sleep(600)
    """
    for _ in range(ATTEMPTS + 1):
        command = [sys.executable, "-c", textwrap.dedent(code)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "mine\n"
            assert store.claim(Owner(), [cell]) is None  # it lives
            process.kill()
            deadline = time.monotonic() + 10
            while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                assert time.monotonic() < deadline
            assert store.rows()[0].attempts == 1
    assert store.claim(Owner(), [cell]) == cell


def die_in_the_middle(store: Store, cells: list[Cell], times: int) -> list[Cell | None]:
    """Claim as often, each time as a process that is not there any more."""
    return [store.claim(Owner(started="before the others"), cells) for _ in range(times)]


@linux
def test_a_run_that_ends_every_process_is_failed_in_the_end_and_says_why(tmp_path):
    store, cells = Store(tmp_path), CELLS[:2]
    store.add(cells)
    assert die_in_the_middle(store, cells, DEATHS) == [cells[0]] * DEATHS
    owner = Owner()
    assert store.release(owner) == 0
    assert store.claim(owner, cells) == cells[1]  # the others go on
    bad, good = store.rows()[1], store.rows()[0]
    assert (bad.cell, bad.state, bad.attempts) == (cells[0], "failed", 1)
    assert bad.error.startswith(f"{DEATHS} processes died in the middle of it")
    assert (good.cell, good.state) == (cells[1], "running")
    assert store.retry(cells) == 1
    assert die_in_the_middle(store, cells[:1], DEATHS) == [cells[0]] * DEATHS  # all of them again
    assert store.claim(Owner(), cells[:1]) is None


@linux
def test_deaths_are_counted_whatever_ends_in_good_order_between_them(tmp_path):
    store, cell = Store(tmp_path), CELLS[0]
    store.add([cell])
    for _ in range(DEATHS):
        assert die_in_the_middle(store, [cell], 1) == [cell]
        owner = Owner()
        if store.claim(owner, [cell]) is None:
            break
        assert store.release(owner) == 1
    (row,) = store.rows()
    assert row.state == "failed"


@linux
@pytest.mark.slow
def test_a_run_that_kills_its_own_process_does_not_hold_up_the_others_for_ever(tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY_MODULE)
    store, bad, good = Store(tmp_path), Cell("deadly", "random", 0, 5), CELLS[0]
    store.add([bad, good])
    assert die_in_the_middle(store, [bad], DEATHS - 1) == [bad] * (DEATHS - 1)
    expected = {"failed": 1, "done": 1}
    settings = {track.name: dict(track.settings) for track in (CHEAP, DEADLY)}
    code = f"""
        from haq_env.leaderboard.engines import start_engine
        from haq_env.leaderboard.protocol import Cell, Track
        from haq_env.leaderboard.store import Store
        from haq_env.leaderboard.sweep import sweep
        tracks = {{name: Track(name, settings) for name, settings in {settings!r}.items()}}
        store = Store({str(tmp_path)!r})
        engine = start_engine("inprocess", store.folder)
        print(sweep(store, [{bad!r}, {good!r}], engine, tracks=tracks) == {expected!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    pipes = {"capture_output": True, "text": True, "env": os.environ | {"PYTHONPATH": path}}
    assert subprocess.run(command, **pipes).returncode == -signal.SIGKILL
    done = subprocess.run(command, **pipes)
    assert done.stdout == "True\n", done.stderr


def test_a_store_of_before_deaths_were_counted_is_read_and_goes_on_and_its_program_too(tmp_path):
    columns = (
        "track TEXT NOT NULL, method TEXT NOT NULL, seed INTEGER NOT NULL, "
        "evaluations INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN "
        "('waiting', 'running', 'done', 'failed')), attempts INTEGER NOT NULL DEFAULT 0, "
        "owner TEXT, machine TEXT, pid INTEGER, started TEXT, beat REAL, "
        "error TEXT NOT NULL DEFAULT '', outcome TEXT, "
        "CHECK ((state = 'done') = (outcome IS NOT NULL)), "
        "CHECK ((state = 'running') = (owner IS NOT NULL)), "
        "PRIMARY KEY (track, method, seed, evaluations)"
    )
    before = sqlite3.connect(tmp_path / FILE, isolation_level=None)  # stays open, as it may run
    before.execute("PRAGMA journal_mode = WAL")
    before.execute(f"CREATE TABLE cells ({columns}) WITHOUT ROWID")
    before.execute(f"PRAGMA application_id = {APPLICATION}")
    before.execute(f"PRAGMA user_version = {1000 * VERSION + 1}")
    insert = "INSERT INTO cells (track, method, seed, evaluations, state, attempts, {}) VALUES "
    done, dead, new = CELLS[:3]
    before.execute(
        insert.format("outcome") + "(?, ?, ?, ?, 'done', 1, ?)",
        (done.track, done.method, done.seed, 5, outcome_to_json(outcome_of(done))),
    )
    before.execute(
        insert.format("owner, machine, pid, started, beat")
        + "(?, ?, ?, ?, 'running', 1, ?, ?, ?, ?, ?)",
        (dead.track, dead.method, dead.seed, 5, "x", "another one", 1, "1", 0.0),
    )
    assert Store(tmp_path, create=False).outcomes() == [outcome_of(done)]  # looks, changes nothing
    query = "SELECT name FROM pragma_table_info('cells')"
    assert "deaths" not in [name for (name,) in before.execute(query)]
    store, owner = Store(tmp_path), Owner()
    assert store.claim(owner, [done, dead]) == dead
    assert store.finish(owner, outcome_of(dead))
    before.execute(
        "INSERT OR IGNORE INTO cells (track, method, seed, evaluations) VALUES (?, ?, ?, ?)",
        (new.track, new.method, new.seed, new.evaluations),
    )
    before.close()
    assert Store(tmp_path).count([done, dead, new]) == {"done": 2, "waiting": 1}
    assert die_in_the_middle(Store(tmp_path), [new], 1) == [new]


def test_an_owner_that_gave_no_sign_of_life_loses_its_run_and_cannot_finish_it(
    tmp_path, monkeypatch
):
    store, cell = Store(tmp_path), CELLS[0]
    elsewhere, here = Owner(machine="another one"), Owner()
    store.add([cell])
    assert store.claim(elsewhere, [cell]) == cell
    assert store.claim(here, [cell]) is None
    monkeypatch.setattr(owners, "LEASE", 0.2)
    time.sleep(0.3)
    store.beat(elsewhere)
    assert store.claim(here, [cell]) is None
    time.sleep(0.3)
    assert store.claim(here, [cell]) == cell
    assert not store.finish(elsewhere, outcome_of(cell))
    assert store.fail(elsewhere, cell, "too late") is None
    assert store.finish(here, outcome_of(cell))
    assert store.outcomes() == [outcome_of(cell)]


def test_a_clock_that_was_set_or_a_machine_that_slept_ends_no_living_sweep(tmp_path, monkeypatch):
    store, cell, owner = Store(tmp_path), CELLS[0], Owner()
    store.add([cell])
    assert store.claim(owner, [cell]) == cell
    monkeypatch.setattr(owners, "LEASE", -1000.0)  # its last sign of life is long ago now
    for other in (owner, Owner()):
        assert store.claim(other, [cell]) is None
    assert store.finish(owner, outcome_of(cell))


def test_what_is_given_back_in_good_order_counts_as_no_attempt(tmp_path):
    store, owner = Store(tmp_path), Owner()
    store.add(CELLS)
    for _ in range(2 * ATTEMPTS):
        assert store.claim(owner, CELLS) == CELLS[0]
        assert store.release(owner) == 1
    assert {(row.state, row.attempts) for row in store.rows()} == {("waiting", 0)}


def test_an_outcome_comes_back_to_the_last_digit():
    outcome = replace(outcome_of(CELLS[0]), wall=1 / 3)
    again = outcome_from_json(outcome.cell, outcome_to_json(outcome))
    assert (again, again.wall) == (outcome, 1 / 3)
    before = json.loads(outcome_to_json(outcome))  # as earlier stores have it
    del before["wall"]
    assert outcome_from_json(outcome.cell, json.dumps(before)).wall == 0
    with pytest.raises(InputError, match="damaged"):
        outcome_from_json(outcome.cell, outcome_to_json(outcome)[:-9])


def test_a_full_disk_is_one_clear_error_and_nothing_is_half_written(tmp_path):
    store, owner = Store(tmp_path), Owner()
    store.add(CELLS)
    cell = store.claim(owner, CELLS)
    steps = tuple(Improvement(k, "8" * 53, "8" * 53, 90.0 + k / 1000) for k in range(1, 400))
    large = Outcome(cell, steps, 400)
    before = store.rows()

    def fill(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    store._file.do(fill)  # SQLite fails from here on as it does when the disk is full
    with pytest.raises(InputError, match=r"store\.sqlite fails: database or disk is full"):
        store.finish(owner, large)
    assert Store(tmp_path).rows() == before
    assert store.finish(owner, large)  # there is space again
    assert store.outcomes() == [large]


def test_files_that_are_no_store_of_this_version_are_refused(tmp_path):
    EvaluationCache(tmp_path / "a" / FILE)
    with pytest.raises(InputError, match="is no leaderboard store"):
        Store(tmp_path / "a")
    Store(tmp_path / "b").close()
    with sqlite3.connect(tmp_path / "b" / FILE) as connection:
        connection.execute(f"PRAGMA user_version = {2000 + SCHEMA}")
    connection.close()
    with pytest.raises(InputError, match=rf"is a leaderboard store of version {2000 + SCHEMA}"):
        Store(tmp_path / "b")
    done = leaderboard("run", "--store", str(tmp_path / "b"), "--quick", "--minutes", "0")
    assert done.returncode == 0, done.stderr  # --quick has a store of its own
    done = leaderboard("run", "--store", str(tmp_path / "b"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "b" / CACHE).exists()
    with pytest.raises(InputError, match="there is no leaderboard store"):
        Store(tmp_path / "c", create=False)


# -- runs --------------------------------------------------------------------------------------


def test_an_outcome_is_what_the_search_did_and_a_replay_gives_the_same(tmp_path):
    cell = Cell("cheap", "annealing", 3, 20)
    first = run_cell(CHEAP, cell, tmp_path)
    history = search_method("annealing")(CHEAP.task(), 20, 3)
    best = history.best_so_far()
    assert first.evaluations == len(history)
    assert first.repeats == sum(trial.cache_hit for trial in history)
    assert first.arithmetic == arithmetic()
    for count in range(1, len(history) + 1):
        assert [s for s in first.steps if s.evaluation <= count][-1].accuracy == best[count - 1]
    for step in first.steps:
        trial = history[step.evaluation - 1]
        assert (trial.w_bits, trial.a_bits) == (step.w_bits, step.a_bits)
    kept = (tmp_path / CACHE).stat().st_size
    again = run_cell(CHEAP, cell, tmp_path)
    assert replace(again, seconds=first.seconds) == first
    assert (tmp_path / CACHE).stat().st_size == kept


@pytest.mark.slow
def test_engines_agree_and_a_crash_takes_no_other_run_with_it(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(DEADLY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    alone, pooled = Store(tmp_path / "alone"), Store(tmp_path / "pooled")
    sweep(alone, CELLS, start_engine("inprocess", alone.folder), tracks=TRACKS)
    bad = [Cell("deadly", "random", 0, 5), Cell("broken", "random", 0, 5)]
    events = []
    engine = start_engine("pool", pooled.folder, jobs=2)
    states = sweep(pooled, [*bad, *CELLS], engine, tracks=TRACKS, tell=events.append)
    assert states == {"failed": 2, "done": 4}
    assert table(pooled) == table(alone)
    rows = {row.cell: row for row in pooled.rows()}
    assert [rows[cell].attempts for cell in bad] == [ATTEMPTS, ATTEMPTS]
    assert {rows[cell].attempts for cell in CELLS} == {1}
    assert "BrokenProcessPool" in rows[bad[0]].error
    assert rows[bad[1]].error.startswith("unknown hardware 'toaster'")
    ends = Counter((event.cell, event.state) for event in events)
    assert ends[bad[0], "waiting"] == ATTEMPTS - 1
    assert ends[bad[0], "failed"] == 1
    # what failed stays so until somebody asks for another try
    nothing = start_engine("inprocess", pooled.folder)
    assert sweep(pooled, bad, nothing, tracks=TRACKS) == {"failed": 2}
    assert pooled.retry(bad) == 2
    assert pooled.count(bad) == {"waiting": 2}


# -- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--methods", "alphazero"], "unknown method 'alphazero'"),
        (["--methods", "transfer-sacc"], "Did you mean 'transfer-sac'?"),
        (["--methods", "random", "transfer-ppo"], f"{EDGE} has none for that"),
        (["--suite", "imagenet"], "unknown suite 'imagenet'"),
        (["--tracks", EDGE + "x"], f"Did you mean '{EDGE}'?"),
        (["--seeds", "0", "10"], "seed 10 is outside the protocol"),
        (["--evaluations", "0"], "evaluations must be 1 to 1000"),
        (["--engine", "slurm"], "unknown engine 'slurm'"),
        (["--jobs", "0"], "jobs must be 1 or more"),
    ],
)
def test_what_cannot_be_run_is_one_clear_error_before_anything_is_spent(tmp_path, argv, complaint):
    done = leaderboard("run", "--store", str(tmp_path), *argv)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / FILE).exists()


@linux
@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line_and_the_command_goes_on_when_there_is_space(tmp_path):
    argv = ["--tracks", EDGE, "--methods", "random", "--engine", "inprocess"]
    argv += ["--evaluations", "1", "--store", str(tmp_path)]  # one answer, and much bookkeeping
    # no file may grow beyond 64 KiB: the system refuses to write, as it does on a full disk
    command = ["bash", "-c", 'ulimit -f 64 && exec "$@"', "bash", sys.executable, str(SCRIPT)]
    command += ["run", *argv]
    Store(tmp_path).close()
    reader = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM cells").fetchall()
    # while somebody reads, the write-ahead log is not begun anew: every commit makes it longer
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    reader.close()
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the leaderboard store ")
    assert done.stderr.endswith("What it holds is kept.\n")
    assert done.stderr.count("\n") == 1
    kept = Store(tmp_path).outcomes()
    assert 0 < len(kept) < len(SEEDS)
    again = leaderboard("run", *argv)
    assert again.returncode == 0, again.stderr
    assert {row.state for row in Store(tmp_path).rows()} == {"done"}
    assert [outcome for outcome in Store(tmp_path).outcomes() if outcome in kept] == kept


@pytest.mark.slow
def test_ctrl_c_leaves_a_store_that_goes_on(tmp_path):
    argv = ["--tracks", EDGE, "--methods", "random", "annealing", "--seeds", "0"]
    argv += ["--evaluations", "8", "--jobs", "2", "--store", str(tmp_path)]
    command = [sys.executable, str(SCRIPT), "run", *argv]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / CACHE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "stopped; the same command goes on from here\n"
    store = Store(tmp_path)
    unfinished = [row for row in store.rows() if row.state != "done"]
    assert unfinished
    assert {(row.state, row.attempts) for row in unfinished} == {("waiting", 0)}
    done = leaderboard("run", *argv)
    assert done.returncode == 0, done.stderr
    assert "2 done" in done.stdout
    assert {outcome.evaluations for outcome in store.outcomes()} == {8}
    again = leaderboard("run", *argv)
    assert "2 runs, 2 of them ended before" in again.stdout


@linux
@pytest.mark.slow
def test_two_sweeps_on_one_store_share_the_runs(tmp_path):
    command = [sys.executable, str(FAULTS), "--only-sweep", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    printed = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    done = [line for out, _ in printed for line in out.splitlines()]
    rows = Store(tmp_path).rows()
    assert sorted(done) == sorted(str(row.cell) for row in rows)
    begun = [entry.name for entry in Log(tmp_path / "log.txt").read() if entry.what == RUN]
    assert sorted(begun) == sorted(done)
    assert {(row.state, row.attempts) for row in rows} == {("done", 1)}
    assert not any("locked" in errors for _, errors in printed)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        (["measure 83/22", "kept 83/22"], ["measure 83/22"], "begun again (policy): 83/22"),
        (["run a b", "done a b"], ["run c", "run a b", "done a b"], "begun again (run): a b"),
        (["measure 83/22"], ["measure 83/22", "kept 83/22"], ""),  # it was in the middle
        (["run a b", "kept 83/22"], ["run a b", "done a b", "kept 83/22", "measure 84/22"], ""),
    ],
)
def test_what_is_finished_before_a_kill_and_begun_again_after_it_is_told(
    tmp_path, before, after, complaint
):
    log = Log(tmp_path / "log.txt")
    for line in before:
        log.write(*line.split(" ", 1))
    first = log.read()
    for line in after:
        log.write(*line.split(" ", 1))
    there = log.read()
    assert [f"{entry.what} {entry.name}" for entry in there] == before + after
    told = done_again(first, there[len(first) :])
    assert complaint in told
    assert bool(told) == bool(complaint)


def test_a_figure_replaces_its_own_row_and_no_other(tmp_path, capsys):
    path = tmp_path / "results" / "figures.md"
    first, other = (Figure(name, "at least 2 x", "3 x", True, "python a.py") for name in "ab")
    assert tell([first, other], 0.5, record=True, path=path)
    assert not tell([replace(first, measured="1 x", met=False)], 7.0, record=True, path=path)
    text = path.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[4:]]
    assert [row[:4] for row in rows[2:]] == [
        ["a", "at least 2 x", "1 x", "NOT MET"],
        ["b", "at least 2 x", "3 x", "met"],
    ]
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert [row[7] for row in rows[2:]] == ["7.0", "0.5"]
    tell([first], 0.5, record=False, path=path)
    assert path.read_text() == text
    assert "a: 3 x, target at least 2 x: met" in capsys.readouterr().out


def test_a_command_that_fails_is_no_fast_one(tmp_path):
    nothing = ("run", "--quick", "--minutes", "0", "--store", str(tmp_path))
    assert timed("a", 10.0, "python a.py", *nothing).met
    assert timed("a", 0.0, "python a.py", *nothing).verdict == "NOT MET"
    failed = timed("a", 10.0, "python a.py", "run", "--engine", "slurm")
    assert (failed.met, failed.measured.endswith(" min, exit code 2")) == (False, True)


@linux
@pytest.mark.slow
def test_killed_sweeps_go_on_where_they_were_and_end_with_the_same_table():
    command = [sys.executable, str(FAULTS), "--kills", "6", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing lost") == 6
    assert "| ilp-fit |" in done.stdout  # there is a table, with all methods
    assert "| a2c |" in done.stdout
