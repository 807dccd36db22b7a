"""The leaderboard's commands: those of its documentation, and what submit and policy write."""

import json
import os
import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from leaderboard import Run, main, parse
from leaderboard_folders import REPORT, SUBMISSIONS
from leaderboard_submit import Submit, chosen
from scripts import Done, run_main
from verified_runs import made

import haq_env
from haq_env.conversion import convert
from haq_env.errors import InputError
from haq_env.leaderboard.best import best_known
from haq_env.leaderboard.entries import OWN, gather
from haq_env.leaderboard.owner import Owner
from haq_env.leaderboard.protocol import Cell, Improvement, Outcome, find_track
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.store import Store
from haq_env.leaderboard.submission import read_submission
from haq_env.leaderboard.verified_file import read_verified
from haq_env.policy import Policy, to_digits
from haq_env.versions import commit, processor

ROOT = Path(__file__).parent.parent
RULES = (ROOT / "benchmarks" / "LEADERBOARD.md").read_text(encoding="utf-8")
EDGE = "digits-bismo-edge-w3a2"
COMMAND = re.compile(r"python benchmarks/leaderboard\.py ([^`\n]+)")


# -- what the documentation says ---------------------------------------------------------------


def documented(text: str) -> list[object]:
    """The commands of a text, read as the script reads them."""
    return [parse(shlex.split(line)) for line in COMMAND.findall(text)]


def steps_to_what_is_published() -> list[object]:
    """The commands of the one block that makes the published submissions."""
    blocks = re.findall(r"^```\n(.*?)^```", RULES, re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if f"submissions/{OWN[0]} " in block]
    return documented(block)


def told(submit: Submit, cells: list[Cell]) -> set[Cell]:
    """What a submit line takes from a store in which these cells have been run."""
    outcomes = [Outcome(cell, (), cell.evaluations) for cell in cells]
    found = chosen(outcomes, submit.tracks, submit.methods, submit.seeds)
    return {outcome.cell for outcome in found}


def test_every_documented_command_can_be_given():
    commands = documented(RULES)
    assert len(commands) > 20
    assert {type(command).__name__ for command in commands} >= {"Run", "Submit", "Verify", "Report"}
    for command in commands:
        if isinstance(command, Run):
            assert command.cells()


def test_the_documented_commands_say_in_full_what_they_submit_and_can_be_repeated():
    submits = [step for step in steps_to_what_is_published() if isinstance(step, Submit)]
    assert sorted(submit.out.name for submit in submits) == sorted(OWN)
    assert {submit.out.parent for submit in submits} == {SUBMISSIONS.relative_to(ROOT)}
    for submit in submits:
        assert submit.overwrite, submit.out  # the folder is there in every clone
        assert submit.tracks, submit.out
        assert submit.methods, submit.out
        assert submit.seeds, submit.out


@pytest.mark.parametrize("name", OWN)
def test_the_documented_commands_make_the_runs_that_are_published(name):
    steps = steps_to_what_is_published()
    (submit,) = [step for step in steps if isinstance(step, Submit) and step.out.name == name]
    published = read_submission(SUBMISSIONS / name)
    made = {claim.outcome.cell for claim in published.claims}
    runs = [(place, step) for place, step in enumerate(steps) if isinstance(step, Run)]
    before = [cell for place, run in runs if place < steps.index(submit) for cell in run.cells()]
    assert told(submit, before) == made  # evaluations of a cell are those that it might use
    # a second pass has a store with the runs of all of them
    assert told(submit, [cell for _, run in runs for cell in run.cells()]) == made
    asked = {
        (track, method, seed)
        for track in submit.tracks
        for method in submit.methods
        for seed in submit.seeds
    }
    assert {(cell.track, cell.method, cell.seed) for cell in made} == asked
    about = published.manifest
    assert (submit.title, submit.authors) == (about.title, about.authors)
    assert (submit.tuned, submit.tuning_seeds) == (about.tuned, about.tuning_seeds)


# -- submit ------------------------------------------------------------------------------------


def finished(cell: Cell, wall: float) -> Outcome:
    """A run that nobody has made: the uniform policy alone, in so many seconds."""
    w_bits, a_bits = to_digits(find_track(cell.track).task().uniform())
    step = Improvement(1, w_bits, a_bits, 70.5)
    return Outcome(cell, (step,), cell.evaluations, wall=wall, arithmetic="0123456789abcdef")


@pytest.fixture
def store(tmp_path) -> Path:
    """A store with finished runs: two methods with two seeds, and more that nobody asks for."""
    cells = [Cell(EDGE, method, seed, 50) for method in ("random", "sac") for seed in (0, 1)]
    cells += [Cell(EDGE, "random", 0, 10), Cell(EDGE, "random", 100, 50), Cell(EDGE, "ppo", 0, 50)]
    store, owner = Store(tmp_path / "store"), Owner()
    store.add(cells)
    while (cell := store.claim(owner, cells)) is not None:
        assert store.finish(owner, finished(cell, wall=900.0))
    store.close()
    return tmp_path / "store"


def submit(store: Path, out: Path, *argv: str) -> Done:
    about = ["--title", "A test", "--authors", "Ada", "Grace", "--store", str(store)]
    which = ["--tracks", EDGE, "--methods", "random", "sac", "--seeds", "0", "1"]
    return run_main(main, "submit", "--out", str(out), *about, *which, *argv)


def test_submit_writes_what_was_asked_for_with_all_that_is_known_of_it(store, tmp_path):
    out = tmp_path / "entry"
    settings = ["--settings", "mutations=3", "note=a=b", "--tuned", "little"]
    done = submit(store, out, *settings, "--tuning-seeds", "100", "101")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Written: {out}, 4 runs." in " ".join(done.stdout.split())
    assert f"{EDGE}, sac: no place without seeds 2, 3, 4" in done.stdout
    found = read_submission(out)
    assert [(c.outcome.cell.method, c.outcome.cell.seed) for c in found.claims] == [
        ("random", 0), ("random", 1), ("sac", 0), ("sac", 1)
    ]  # fmt: skip
    assert {claim.outcome.cell.evaluations for claim in found.claims} == {50}  # of two, the longer
    about = found.manifest
    assert (about.title, about.authors, about.code) == ("A test", ("Ada", "Grace"), "")
    assert about.settings == {"mutations": "3", "note": "a=b"}
    assert (about.tuned, about.tuning_seeds) == ("little", (100, 101))
    assert about.hardware == f"{processor()}, {os.cpu_count()} cores"
    assert about.seconds == 4 * 900
    assert about.versions["haq-env"] == haq_env.__version__
    assert about.versions["torch"] == version("torch")
    assert about.commit == commit()
    assert "commit" in json.loads((out / "manifest.json").read_text())


def test_what_is_said_of_hardware_and_hours_counts_more_than_what_is_found(store, tmp_path):
    assert submit(store, tmp_path / "entry", "--hardware", "a TPU", "--hours", "2").returncode == 0
    about = read_submission(tmp_path / "entry").manifest
    assert (about.hardware, about.seconds) == ("a TPU", 7200)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--settings", "mutations"], "a setting is NAME=VALUE, not 'mutations'"),
        (["--seeds", "0", "7"], "has no finished run of 'seed 7' to submit"),
        (["--methods", "random", "evolution"], "has no finished run of 'evolution' to submit"),
        (["--seeds", "100"], "seed 100 is not published: runs that are have seeds 0 to 9"),
        (["--tracks", "digits-toaster"], "unknown track 'digits-toaster'"),
        (["--hours", "-1"], "hours must be 0 or more, not -1"),
        (["--tuning-seeds", "3"], "settings were tuned on seed 3"),
    ],
)
def test_what_cannot_be_submitted_is_one_clear_error_and_no_folder(
    store, tmp_path, argv, complaint
):
    done = submit(store, tmp_path / "entry", *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{re.escape(complaint)}[^\n]*\n", done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_submit_replaces_a_submission_only_when_it_is_told_to(store, tmp_path):
    out = tmp_path / "entry"
    assert submit(store, out).returncode == 0
    before = (out / "manifest.json").read_bytes()
    done = submit(store, out, "--settings", "mutations=3")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {out} is there already: give another folder, or overwrite it.\n"
    )
    assert (out / "manifest.json").read_bytes() == before
    assert submit(store, out, "--settings", "mutations=3", "--overwrite").returncode == 0
    assert read_submission(out).manifest.settings == {"mutations": "3"}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_checkout_and_says_whether_its_code_was_changed(tmp_path):
    def git(*argv: str) -> str:
        about = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        command = ["git", "-C", str(tmp_path), *about, *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    code = tmp_path / "haq_env"
    code.mkdir()
    (code / "policy.py").write_text("bits = 8\n")
    assert commit(tmp_path) is None  # no checkout
    git("init", "--quiet")
    assert commit(tmp_path) is None  # nothing was committed yet
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    digits = git("rev-parse", "HEAD")
    assert commit(tmp_path) == digits
    assert commit(code) is None  # a folder in somebody's repository
    (tmp_path / "notes.txt").touch()
    assert commit(tmp_path) == digits  # decides nothing
    (code / "mine.py").touch()
    assert commit(tmp_path) == f"{digits}-dirty"
    (code / "mine.py").unlink()
    (code / "policy.py").write_text("bits = 4\n")
    assert commit(tmp_path) == f"{digits}-dirty"


# -- policy ------------------------------------------------------------------------------------


def best_of_the_table(track: str) -> tuple[str, str]:
    """The bits that the published table calls the best known ones."""
    text = (REPORT / find_track(track).suite.folder / "README.md").read_text(encoding="utf-8")
    row = next(
        line
        for line in text.partition("## Best policies known")[2].splitlines()
        if line.startswith(f"| {track} |")
    )
    w_bits, a_bits = re.findall(r"`([1-8]+)`", row)
    return w_bits, a_bits


@pytest.mark.parametrize("track", [EDGE, "digits-transfer-network"])
def test_the_best_policy_known_is_exported_converted_and_read_back(tmp_path, track):
    out, table, back = (tmp_path / name for name in ("policy.json", "bits.csv", "back.json"))
    done = run_main(main, "policy", track, "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    policy, task = Policy.load(out), find_track(track).task()
    assert to_digits(policy.bits) == best_of_the_table(track)
    assert policy.names == tuple(task.layers.names)
    assert policy.record["cost"] == task.all_costs(policy.bits)
    assert policy.record["cost"]["latency"] <= policy.record["budget"]["limit"]
    assert task.budget.fits(policy.bits)
    assert convert(convert(out, table, "csv"), back) == back
    assert (Policy.load(back).bits == policy.bits).all()
    assert Policy.load(back).names == policy.names


def test_a_policy_of_one_entry_and_seed_is_one_that_this_run_had_at_a_checkpoint(tmp_path):
    out = tmp_path / "policy.json"
    argv = ["policy", EDGE, "--entry", "sac", "--seed", "7", "--out", str(out)]
    assert run_main(main, *argv).returncode == 0
    policy = Policy.load(out)
    verified = read_verified(SUBMISSIONS / "seeds" / "verified.json")
    (run,) = [r for r in verified.runs if (r.cell.method, r.cell.seed) == ("sac", 7)]
    best = max(run.scored, key=lambda scored: scored.score)
    assert to_digits(policy.bits) == (best.w_bits, best.a_bits)
    told = policy.record["leaderboard"]
    assert (told["track"], told["entry"], told["seed"]) == (EDGE, "sac", 7)
    assert tuple(told["test"]) == best.test
    assert dict(run.steps)[told["evaluation"]] == best
    assert policy.record["accuracy"]["search"] == best.accuracy
    assert (policy.record["algorithm"], policy.record["evaluations"]) == ("sac", 200)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["digits-toaster"], "unknown track 'digits-toaster'"),
        ([EDGE, "--entry", "sacc"], f"unknown entry on {EDGE} 'sacc'"),
        ([EDGE, "--entry", "sac", "--seed", "55"], f"sac has no verified run on {EDGE} with seed"),
        ([EDGE, "--seed", "77"], f"nobody has a verified run on {EDGE} with seed 77"),
    ],
)
def test_a_policy_that_nobody_has_is_one_clear_error(tmp_path, argv, complaint):
    done = run_main(main, "policy", *argv, "--out", str(tmp_path / "policy.json"))
    assert done.returncode == 2
    assert re.fullmatch(rf"error: [^\n]*{re.escape(complaint)}[^\n]*\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_the_best_known_is_what_the_table_says_whoever_has_found_it():
    numbers = [made(("random", "sac")), made(("mine",), "better", gain=1.5)]
    entries = gather(numbers).runs
    for track, anchor in Standings(numbers, repetitions=20).anchors.items():
        found = best_known(entries, track)
        assert found.policy == anchor.best
        assert found.entry in anchor.by
        assert best_known(entries, track, "mine", 2).policy in {
            policy for run in entries["mine"] if run.cell.seed == 2 for policy in run.scored
        }
    with pytest.raises(InputError, match="nobody has a verified run on digits-bitfusion-w2a6"):
        best_known(entries, "digits-bitfusion-w2a6")
