"""A submission is executed again before it counts, and what is wrong with it is said."""

import hashlib
import json
import os
import re
import resource
import secrets
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import leaderboard
import pytest
from leaderboard_folders import SUBMISSIONS
from leaderboard_report import Report
from leaderboard_submit import chosen, holes
from leaderboard_verify import Verify
from rich.console import Console
from scripts import Done, run_main

from haq_env.data import load_dataset
from haq_env.data.store import cache_folder
from haq_env.errors import InputError
from haq_env.evaluation.measuring import Measurer
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.leaderboard import judge
from haq_env.leaderboard.agreement import agreement
from haq_env.leaderboard.arithmetic import OTHER, SAME
from haq_env.leaderboard.entries import OWN
from haq_env.leaderboard.protocol import (
    FRESH_SEEDS,
    TRACKS,
    Cell,
    Improvement,
    Outcome,
    checkpoints,
    find_track,
)
from haq_env.leaderboard.published import check_published
from haq_env.leaderboard.running import run_cell
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.submission import (
    MOST_RUNS,
    Manifest,
    read_submission,
    write_submission,
)
from haq_env.leaderboard.verified import Scored, Verified
from haq_env.leaderboard.verified_file import read_verified, write_verified
from haq_env.leaderboard.verify import Choice, policies_of, verify
from haq_env.policy import from_digits, to_digits
from haq_env.summation import AVX2

TRACK = "digits-bismo-edge-w3a2"
ROOT = Path(__file__).parent.parent
ABOUT = Manifest("A test", ("Ada", "Grace"), settings={"mutations": "3"}, tuning_seeds=(100,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("leaderboard")


@pytest.fixture(scope="module")
def outcomes(folder) -> list[Outcome]:
    cells = [Cell(TRACK, "evolution", 0, 5), Cell(TRACK, "random", 3, 2)]
    return [run_cell(find_track(TRACK), cell, folder) for cell in cells]


@pytest.fixture
def submitted(outcomes, tmp_path) -> Path:
    write_submission(tmp_path / "entry", ABOUT, outcomes)
    return tmp_path / "entry"


@pytest.fixture(scope="module")
def choice(folder) -> Choice:
    return Choice(cache=folder / "verify.sqlite")  # every policy is executed once in these tests


def edit(path: Path, row: int, change) -> None:
    """Change one line of runs.jsonl, as somebody who wants a better place would."""
    lines = (path / "runs.jsonl").read_text().splitlines()
    record = json.loads(lines[row])
    change(record)
    lines[row] = json.dumps(record)
    (path / "runs.jsonl").write_text("\n".join(lines) + "\n")


def problems(path: Path, choice: Choice) -> str:
    verdicts, _ = verify(read_submission(path), choice)
    return " ".join(str(verdict) for verdict in verdicts if verdict.problems)


# -- what is fine ------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read(outcomes, submitted):
    found = read_submission(submitted)
    assert [claim.outcome for claim in found.claims] == outcomes
    assert found.manifest == ABOUT
    task = find_track(TRACK).task()
    for claim in found.claims:
        costs = [task.cost(step.bits) for step in claim.outcome.steps]
        assert list(claim.costs) == costs


def test_an_honest_submission_is_verified_by_executing_it(submitted, outcomes, choice, tmp_path):
    verdicts, found = verify(read_submission(submitted), choice)
    assert [verdict.problems for verdict in verdicts] == [(), ()]
    task = find_track(TRACK).task()
    for run, outcome in zip(found.runs, outcomes, strict=True):
        for (evaluation, policy), step in zip(run.steps, outcome.steps, strict=True):
            assert (evaluation, policy.w_bits) == (step.evaluation, step.w_bits)
            assert abs(policy.accuracy - step.accuracy) <= SAME.single
        assert len(run.best_after(2 if run.cell.seed else 5).test) == len(FRESH_SEEDS)
    # the score is what the evaluator's own final measurement says
    best = found.runs[0].best_after(5)
    bits = from_digits(best.w_bits, best.a_bits)
    recipe = task.evaluator.recipe
    assert best.test[1] == task.evaluator.final(bits, recipe, FRESH_SEEDS[1])["test"]
    write_verified(found, tmp_path / "verified.json")
    assert read_verified(tmp_path / "verified.json") == found


def test_a_second_verification_executes_nothing_and_says_the_same(submitted, choice, monkeypatch):
    _, first = verify(read_submission(submitted), choice)

    def never(*_: object) -> None:
        raise AssertionError("a policy was executed twice")

    monkeypatch.setattr(Measurer, "measure", never)
    monkeypatch.setattr(TrainedEvaluator, "final", never)
    judge._judge.cache_clear()  # as in another process
    _, second = verify(read_submission(submitted), choice)
    assert second == first
    with pytest.raises(AssertionError, match="executed twice"):
        verify(read_submission(submitted), Choice())


def test_claimed_numbers_never_reach_the_verified_ones(submitted, choice):
    _, honest = verify(read_submission(submitted), choice)
    edit(submitted, 0, lambda r: r["steps"][-1].update(accuracy=r["steps"][-1]["accuracy"] + 0.4))
    verdicts, found = verify(read_submission(submitted), choice)
    assert not any(verdict.problems for verdict in verdicts)  # another processor could have said so
    assert replace(found, digests=honest.digests) == honest


def test_a_sample_is_drawn_by_its_seed(submitted, choice):
    submission = read_submission(submitted)
    names = {
        seed: [v.cell.method for v in verify(submission, replace(choice, sample=1, seed=seed))[0]]
        for seed in range(6)
    }
    assert {name for drawn in names.values() for name in drawn} == {"evolution", "random"}
    assert all(len(drawn) == 1 for drawn in names.values())


def test_published_numbers_that_do_not_come_out_again_are_refused(submitted, choice):
    submission = read_submission(submitted)
    _, fine = verify(submission, choice)
    assert not any(v.reasons for v in verify(submission, choice, published=fine)[0])
    better = {p: replace(p, test=tuple(a + 2 for a in p.test)) for p in fine.policies}
    runs = [replace(r, steps=tuple((k, better[p]) for k, p in r.steps)) for r in fine.runs]
    forged = replace(fine, policies=tuple(better.values()), runs=tuple(runs))
    verdicts, _ = verify(submission, choice, published=forged)
    assert all("do not come out again" in str(verdict) for verdict in verdicts)
    verdicts, _ = verify(submission, choice, published=replace(fine, runs=fine.runs[:1]))
    assert [len(verdict.reasons) for verdict in verdicts] == [0, 1]


# -- what is refused ---------------------------------------------------------------------------


def test_a_bit_raised_past_the_budget_is_refused(submitted, choice):
    def raise_bit(record):
        digits = record["steps"][-1]["w_bits"]
        record["steps"][-1]["w_bits"] = digits[0] + "8" + digits[2:]

    edit(submitted, 0, raise_bit)
    assert re.fullmatch(r"refused: evolution .*is past the budget: .*", problems(submitted, choice))


def test_an_edited_accuracy_is_refused(submitted, choice):
    def raise_accuracy(record):
        record["steps"][-1]["accuracy"] += 1.0

    edit(submitted, 0, raise_accuracy)
    assert re.search(r"is claimed to have \d+\.\d+ %, and has \d+", problems(submitted, choice))
    verdicts, found = verify(read_submission(submitted), choice)
    assert [run.cell.method for run in found.runs] == ["random"]  # and only that one is ranked
    assert len(found.refused) == sum(bool(verdict.problems) for verdict in verdicts) == 1


def test_a_policy_for_another_network_is_refused(submitted, choice):
    def shorten(record):
        for step in record["steps"]:
            step["w_bits"], step["a_bits"] = step["w_bits"][:-1], step["a_bits"][:-1]

    edit(submitted, 0, shorten)
    assert "for another network: it has 27 layers" in problems(submitted, choice)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r["steps"][0].update(cost=0.1), "is claimed to cost 0.1, and costs"),
        (lambda r: r["steps"][0].update(a_bits="9" * 28), "digit from 1 to 8"),
        (lambda r: r["steps"][0].update(a_bits="8" + "2" * 27), "not the uniform"),
        (lambda r: r["steps"].pop(0), "steps must begin with evaluation 1"),
        (lambda r: r.update(track="digits-toaster"), "unknown track"),
        (lambda r: r.update(method="../../etc"), "is not of the form"),
        (lambda r: r.update(method="<b>"), "is not of the form"),
        (lambda r: r.update(seed=100), "seed 100 is outside the protocol"),
        (lambda r: r.update(seed=10**30), "'seed' must be an integer"),
        (lambda r: r.update(seed=True), "'seed' must be an integer"),
        (lambda r: r.update(evaluations=6), "'evaluations' must be an integer from 1 to 5"),
        (lambda r: r.update(charge=float("nan")), "NaN is no number"),
        (lambda r: r.update(charge=float("inf")), "Infinity is no number"),
        (lambda r: r.update(charge=1e300), "'charge' must be a number"),
        (lambda r: r.update(path="/etc/passwd"), "unknown field 'path'"),
        (lambda r: r.update(seconds="1"), "'seconds' must be a number"),
        (lambda r: r.update(arithmetic="AVX2"), "is not of the form"),
        (lambda r: r.pop("steps"), "the field 'steps' is missing"),
        (lambda r: r.update(steps=[[]] * 3), "must be a JSON object"),
    ],
)
def test_every_other_tampering_has_its_own_reason(submitted, choice, change, complaint):
    edit(submitted, 0, change)
    if complaint in ("is claimed to cost 0.1, and costs", "digit from 1 to 8", "not the uniform"):
        assert complaint in problems(submitted, choice)
    else:
        with pytest.raises(InputError, match=complaint):
            read_submission(submitted)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"seed": 1, "seed": 2}\n', "the field 'seed' comes twice"),
        ("[" * 100_000 + "\n", "nested too deeply"),
        ("9" * 10_000 + "\n", "no complete JSON"),
        ('{"track": "\\ud800"}\n', "printable characters"),
        ('{"track": "\\u001b[2J"}\n', "printable characters"),
    ],
)
def test_hostile_json_is_refused(submitted, text, complaint):
    lines = (submitted / "runs.jsonl").read_text().splitlines(keepends=True)
    (submitted / "runs.jsonl").write_text(text + lines[1])
    with pytest.raises(InputError, match=complaint):
        read_submission(submitted)


def test_a_truncated_file_is_refused_wherever_it_is_cut(submitted):
    whole = (submitted / "runs.jsonl").read_bytes()
    for length in (0, 1, len(whole) // 2, whole.index(b"\n") + 1, len(whole) - 1):
        (submitted / "runs.jsonl").write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut off"):
            read_submission(submitted)


@pytest.mark.parametrize("name", ["manifest.json", "runs.jsonl"])
def test_a_path_that_leaves_the_folder_is_refused(submitted, name):
    outside = submitted.parent / "outside"
    (submitted / name).rename(outside)
    (submitted / name).symlink_to(outside)
    with pytest.raises(InputError, match="is a link, which may leave the folder"):
        read_submission(submitted)


def test_a_pipe_is_refused_without_waiting_for_its_writer(submitted):
    (submitted / "runs.jsonl").unlink()
    os.mkfifo(submitted / "runs.jsonl")
    with pytest.raises(InputError, match="no plain file"):
        read_submission(submitted)


def test_a_gigabyte_is_refused_without_reading_it(submitted):
    with (submitted / "runs.jsonl").open("r+b") as file:
        file.truncate(1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="1,073,741,824 bytes, and at most 20,000,000 are read"):
        read_submission(submitted)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_one_run_twice_is_refused(submitted):
    lines = (submitted / "runs.jsonl").read_text().splitlines(keepends=True)
    (submitted / "runs.jsonl").write_text(lines[0] * 2)
    with pytest.raises(InputError, match=r"line 2: .* is there twice"):
        read_submission(submitted)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"protocol": 0}, "the protocol is 0"),
        ({"code": "javascript:alert(1)"}, "is not of the form"),
        ({"code": 'https://a"onload='}, "is not of the form"),
        ({"tuning_seeds": [3]}, "tuned on seed 3"),
        ({"authors": []}, "one author or more"),
        ({"title": "a\nb"}, "printable characters"),
        ({"cache": "x.sqlite"}, "unknown field 'cache'"),
        ({"commit": "main"}, "'commit' is 'main', which is not of the form"),
        ({"commit": "0" * 40 + "-clean"}, "is not of the form"),
        ({"commit": 1}, "'commit' must be text"),
    ],
)
def test_a_wrong_manifest_is_refused(submitted, change, complaint):
    head = json.loads((submitted / "manifest.json").read_text())
    (submitted / "manifest.json").write_text(json.dumps(head | change))
    with pytest.raises(InputError, match=complaint):
        read_submission(submitted)


@pytest.mark.parametrize("commit", ["0123456789" * 4, "0123456789" * 4 + "-dirty", None, "missing"])
def test_a_manifest_may_name_a_commit_or_none(submitted, commit):
    head = json.loads((submitted / "manifest.json").read_text())
    assert head.pop("commit") is None  # nobody has said one
    told = {} if commit == "missing" else {"commit": commit}
    (submitted / "manifest.json").write_text(json.dumps(head | told))
    assert read_submission(submitted).manifest.commit == told.get("commit")


# -- writing -----------------------------------------------------------------------------------


def test_a_submission_that_cannot_be_written_leaves_nothing(outcomes, tmp_path, monkeypatch):
    write = Path.write_text

    def full(self, text, **kwargs):
        if self.name == "runs.jsonl":
            write(self, text[:100], **kwargs)
            raise OSError(28, "No space left on device")
        return write(self, text, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_submission(tmp_path / "entry", ABOUT, outcomes)
    assert list(tmp_path.iterdir()) == []


def test_a_submission_is_not_written_over_another(submitted, outcomes):
    before = (submitted / "runs.jsonl").read_bytes()
    with pytest.raises(InputError, match="is there already"):
        write_submission(submitted, ABOUT, outcomes)
    assert (submitted / "runs.jsonl").read_bytes() == before


def test_runs_for_tuning_are_not_submitted_and_of_two_lengths_the_longer_is():
    def outcome(seed, budget):
        step = Improvement(1, "8", "8", 50.0)
        return Outcome(Cell(TRACK, "random", seed, budget), (step,), budget)

    every = [outcome(1, 50), outcome(1, 400), outcome(100, 400), outcome(0, 50)]
    found = chosen(every, (), ())
    assert [(o.cell.seed, o.cell.evaluations) for o in found] == [(0, 50), (1, 400)]
    assert chosen(every, (), ("sac",)) == []
    assert [o.cell.seed for o in chosen(every, (), (), (1,))] == [1]


def test_runs_are_judged_at_the_checkpoints_that_they_may_reach():
    def judged(track, evaluations):
        return checkpoints(Cell(track, "random", 0, evaluations))

    assert judged(TRACK, 400) == (50, 100, 200, 400)
    assert judged(TRACK, 300) == (50, 100, 200)
    assert judged(TRACK, 30) == (30,)
    assert judged("digits-transfer-network", 60) == (2, 10, 50)
    assert judged("digits-transfer-network", 9) == (2,)
    assert judged("digits-transfer-network", 1) == (1,)


@pytest.mark.slow
def test_the_documented_way_for_ones_own_search_makes_a_submission(tmp_path, monkeypatch, choice):
    text = (ROOT / "benchmarks" / "LEADERBOARD.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    for long, short in (("range(10)", "range(1)"), ("evaluations=50", "evaluations=3")):
        assert long in code
        code = code.replace(long, short)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    verdicts, found = verify(read_submission(tmp_path / "benchmarks/submissions/mine"), choice)
    assert not verdicts[0].problems
    assert found.runs[0].cell == Cell(TRACK, "my-search", 0, 3)


# -- the command -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_exit_code_of_verify_is_the_number_of_failures(submitted, choice, tmp_path):
    def command(*folders: Path) -> Done:
        argv = ["verify", *map(str, folders), "--cache", str(choice.cache), "--jobs", "1"]
        return run_main(leaderboard.main, *argv)

    verify(read_submission(submitted), choice)
    wrong, broken = tmp_path / "wrong", tmp_path / "broken"
    for each in (wrong, broken):
        shutil.copytree(submitted, each)
    for row in (0, 1):
        edit(wrong, row, lambda r: r["steps"][0].update(accuracy=1.0))
    (broken / "runs.jsonl").write_text("{}")
    done = command(submitted, wrong, broken)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("fine: ") == 2
    assert done.stdout.count("refused: ") == 3
    assert len(read_verified(submitted / "verified.json").runs) == 2
    assert read_verified(wrong / "verified.json").runs == ()
    assert not (broken / "verified.json").exists()


def test_numbers_of_another_submission_are_not_taken_for_its_own(submitted, choice, capsys):
    _, found = verify(read_submission(submitted), choice)
    write_verified(found, submitted / "verified.json")
    check = Verify((submitted,), check=True, cache=choice.cache, jobs=1)
    assert check.run(Console()) == 0
    head = (submitted / "manifest.json").read_text()
    (submitted / "manifest.json").write_text(head.replace("A test", "B test"))
    assert check.run(Console()) == 1
    assert "was made from other files" in capsys.readouterr().out


def forge(found: Verified, how: str) -> Verified:
    """Edit verified numbers as somebody would who submits them along with the policies."""
    first, second = found.runs
    if how == "a better policy for another run":
        better = (first.steps[0], (2, first.steps[-1][1]))
        return replace(found, runs=(first, replace(second, steps=better)))
    if how == "a run that was not submitted":
        return replace(found, runs=(*found.runs, replace(first, cell=replace(first.cell, seed=9))))
    if how == "fewer evaluations":
        return replace(found, runs=(replace(first, evaluations=1), second))
    if how == "another title":
        return replace(found, title="The best of all")
    if how == "a run that is refused as well":
        return replace(found, refused=(f"refused: {first.cell}; for no reason",))
    if how == "a run left out":
        return replace(found, runs=(first,))
    if how == "a policy of another track":
        other = replace(first.steps[0][1], track="digits-bismo-cloud-w3a3")
        return replace(found, policies=(*found.policies, other))
    if how == "a score that no run needs":
        unscored = next(each for _, each in first.steps if not each.test)
        return with_policy(found, unscored, replace(unscored, test=(99.0,) * len(FRESH_SEEDS)))
    if how == "a policy of no run":
        extra = replace(first.steps[0][1], w_bits="8" * 28, test=())
        return replace(found, policies=(*found.policies, extra))
    if how == "a cheaper policy":
        cheap = replace(first.steps[0][1], cost=0.5 * first.steps[0][1].cost)
        return with_policy(found, first.steps[0][1], cheap)
    return replace(found, runs=(replace(first, charge=0.5), second))


def with_policy(found: Verified, old: Scored, new: Scored) -> Verified:
    """Say something else of a policy wherever it is."""
    runs = tuple(
        replace(run, steps=tuple((n, new if each == old else each) for n, each in run.steps))
        for run in found.runs
    )
    policies = tuple(new if each == old else each for each in found.policies)
    return replace(found, policies=policies, runs=runs)


@pytest.mark.parametrize(
    "how",
    [
        *("a better policy for another run", "a run that was not submitted", "fewer evaluations"),
        *("another title", "another charge", "a run that is refused as well", "a run left out"),
        *("a cheaper policy", "a policy of another track", "a policy of no run"),
        "a score that no run needs",
    ],
)
def test_verified_numbers_that_were_brought_along_are_not_believed(
    submitted, choice, tmp_path, capsys, how
):
    _, found = verify(read_submission(submitted), choice)
    write_verified(forge(found, how), submitted / "verified.json")
    assert Verify((submitted,), check=True, cache=choice.cache, jobs=1).run(Console()) == 1
    assert "verify it again" in capsys.readouterr().out
    with pytest.raises(InputError, match="verify it again"):
        Report((submitted,), tmp_path / "report").run(Console())
    write_verified(found, submitted / "verified.json")
    assert Report((submitted,), tmp_path / "report").run(Console()) == 0


def test_a_submission_is_replaced_only_if_that_is_asked_for(submitted, outcomes, tmp_path):
    (submitted / "verified.json").write_text("{}")
    with pytest.raises(InputError, match="is there already"):
        write_submission(submitted, ABOUT, outcomes[:1])
    assert len(write_submission(submitted, ABOUT, outcomes[:1], overwrite=True).claims) == 1
    assert not (submitted / "verified.json").exists()
    (submitted / "notes.txt").touch()
    with pytest.raises(InputError, match="is there already"):
        write_submission(submitted, ABOUT, outcomes, overwrite=True)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "precious").touch()
    with pytest.raises(InputError, match="is there already"):
        write_submission(foreign, ABOUT, outcomes, overwrite=True)
    assert (foreign / "precious").exists()


def test_what_is_submitted_says_what_it_lacks(outcomes):
    assert holes(outcomes) == [
        f"{TRACK}, evolution: no place without seeds 1, 2, 3, 4, here or elsewhere",
        f"{TRACK}, random: no place without seeds 0, 1, 2, 4, here or elsewhere",
    ]


def test_what_cannot_be_executed_is_no_number_of_refused_runs(submitted, choice, capsys):
    assert Verify((submitted,), cache=choice.cache, jobs=0).run(Console()) == 126
    assert "jobs must be 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("refused", [False, True])
def test_better_accuracies_that_were_brought_along_do_not_come_out(
    submitted, choice, capsys, refused
):
    _, found = verify(read_submission(submitted), choice)
    old = found.runs[0].steps[-1][1]
    forged = with_policy(found, old, replace(old, test=tuple(a + 2 for a in old.test)))
    if refused:  # a line of excuse for the same run
        cell = found.runs[0].cell
        forged = replace(forged, refused=(f"refused: {cell}; the published numbers",))
    write_verified(forged, submitted / "verified.json")
    assert Verify((submitted,), check=True, cache=choice.cache, jobs=1).run(Console()) > 0
    out = capsys.readouterr().out
    assert ("verify it again" if refused else "do not come out again") in out


@pytest.mark.parametrize("told", [{"title": "Better"}, {"hardware": "a TPU"}, {"seconds": 1.0}])
def test_what_is_told_of_a_submission_is_what_its_manifest_says(submitted, choice, told):
    submission = read_submission(submitted)
    _, found = verify(submission, choice)
    check_published(submission, found)
    with pytest.raises(InputError, match="names another submission"):
        check_published(submission, replace(found, **told))


@pytest.mark.parametrize("change", [{"test": (1.0, 2.0, 3.0)}, {"accuracy": 3.0}])
def test_a_policy_of_two_submissions_has_the_same_numbers_in_both(submitted, choice, change):
    _, found = verify(read_submission(submitted), choice)
    old = found.runs[0].steps[0][1]
    other = replace(found, name="zzz", title="Another one")
    assert Standings([found, other]).anchors == Standings([found]).anchors
    forged = with_policy(other, old, replace(old, **change))
    with pytest.raises(
        InputError, match=rf"{found.name} and zzz have other numbers for one policy"
    ):
        Standings([found, forged])


def test_a_winner_of_a_checkpoint_that_was_made_up_does_not_come_out(submitted, choice, capsys):
    _, found = verify(read_submission(submitted), choice)
    run = next(run for run in found.runs if run.cell.method == "evolution")
    best = run.best_after(5)
    second = max((p for _, p in run.steps if p is not best), key=lambda policy: policy.accuracy)
    lost = replace(best, accuracy=second.accuracy - 0.1, test=())
    crowned = replace(second, test=(99.0, 99.0, 99.0))  # nobody has measured that
    forged = with_policy(with_policy(found, best, lost), second, crowned)
    check_published(read_submission(submitted), forged)
    write_verified(forged, submitted / "verified.json")
    assert Verify((submitted,), check=True, cache=choice.cache, jobs=1).run(Console()) > 0
    assert "do not come out again" in capsys.readouterr().out


def test_a_fine_run_that_is_published_as_refused_is_a_failure(submitted, choice, capsys):
    _, found = verify(read_submission(submitted), choice)
    cell = found.runs[0].cell
    kept = found.runs[1:]
    used = {policy for run in kept for _, policy in run.steps}
    policies = tuple(policy for policy in found.policies if policy in used)
    excuse = (f"refused: {cell}; its accuracy",)
    forged = replace(found, runs=kept, policies=policies, refused=excuse)
    write_verified(forged, submitted / "verified.json")
    assert Verify((submitted,), check=True, cache=choice.cache, jobs=1).run(Console()) == 1
    assert "it is published as refused, and nothing is wrong with it" in capsys.readouterr().out


def test_a_refusal_is_not_disproved_where_sums_have_other_last_digits(submitted, choice):
    edit(submitted, 0, lambda r: r["steps"][-1].update(accuracy=r["steps"][-1]["accuracy"] + 3))
    assert Verify((submitted,), cache=choice.cache, jobs=1).run(Console()) == 1
    submission = read_submission(submitted)
    elsewhere = "0123456789abcdef"
    claims = [
        replace(c, outcome=replace(c.outcome, arithmetic=elsewhere)) for c in submission.claims
    ]
    _, found = verify(submission, choice)
    assert len(found.refused) == 1  # 3 points are too many on the claim's own arithmetic
    verdicts, _ = verify(
        replace(submission, claims=tuple(claims)), choice,
        published=replace(found, arithmetic=elsewhere),
    )  # fmt: skip
    assert not any(verdict.reasons for verdict in verdicts)


def test_numbers_from_another_arithmetic_are_said_to_be_held_against_less(
    submitted, choice, capsys
):
    _, found = verify(read_submission(submitted), choice)
    write_verified(replace(found, arithmetic="0123456789abcdef"), submitted / "verified.json")
    assert Verify((submitted,), check=True, cache=choice.cache, jobs=1).run(Console()) == 0
    assert "within 12 points, and scores within 5" in capsys.readouterr().out


def test_what_nobody_has_verified_is_left_out_of_a_report_and_said(
    submitted, choice, tmp_path, monkeypatch, capsys
):
    with pytest.raises(InputError, match=r"has no verified\.json: verify it first"):
        Report((submitted,), tmp_path / "report").run(Console())
    write_verified(verify(read_submission(submitted), choice)[1], submitted / "verified.json")
    everything = tmp_path / "submissions"
    shutil.copytree(submitted, everything / submitted.name)
    shutil.copytree(submitted, everything / ".killed.part")  # what a killed `submit` may leave
    shutil.copytree(submitted, everything / "new")
    (everything / "new" / "verified.json").unlink()
    monkeypatch.setattr("leaderboard_folders.SUBMISSIONS", everything)
    assert Report((), tmp_path / "report").run(Console(width=200)) == 0
    out = capsys.readouterr().out
    assert f"left out: {everything / 'new'}, which nobody has verified" in out
    assert "killed" not in out


def test_numbers_of_a_submission_that_cannot_be_read_are_in_no_table(submitted, choice, tmp_path):
    write_verified(verify(read_submission(submitted), choice)[1], submitted / "verified.json")
    (submitted / "manifest.json").write_text("{}")
    assert Verify((submitted,), cache=choice.cache, jobs=1).run(Console()) == 1
    with pytest.raises(InputError, match="the field 'protocol' is missing"):
        Report((submitted,), tmp_path / "report").run(Console())


@pytest.mark.parametrize("edited", [1.0, OTHER.single + 0.5])
def test_other_arithmetic_may_give_other_accuracies_but_not_any(submitted, choice, edited):
    def elsewhere(record):
        record["arithmetic"] = "0123456789abcdef"
        record["steps"][-1]["accuracy"] += edited

    edit(submitted, 0, elsewhere)
    asked = replace(choice, other_arithmetic=True)
    assert bool(problems(submitted, asked)) == (edited > OTHER.single)


@pytest.mark.parametrize("named", ["", "0123456789abcdef"])
def test_who_names_another_arithmetic_or_none_is_granted_no_more_unless_it_is_asked_for(
    submitted, choice, capsys, named
):
    def elsewhere(record):
        record["arithmetic"] = named
        record["steps"][-1]["accuracy"] += 1.0

    def verified(**asked) -> str:
        Verify((submitted,), cache=choice.cache, jobs=1, **asked).run(Console())
        return capsys.readouterr().out

    edit(submitted, 0, elsewhere)
    strict = verified()
    assert len(read_verified(submitted / "verified.json").refused) == 1
    assert "1 refused runs are from another arithmetic, or from one that they do not say" in strict
    assert "--other-arithmetic allows their claims 12 points in the place of 0.5" in strict
    lenient = verified(other_arithmetic=True)
    assert not read_verified(submitted / "verified.json").refused
    assert "their claims were held against 12 points in the place of 0.5" in lenient
    # what was let in so is checked so
    assert "1 refused" in verified(check=True)
    assert "0 refused" in verified(check=True, other_arithmetic=True)


@pytest.mark.parametrize("name", OWN)
def test_every_claim_of_this_package_came_out_within_half_a_point(name):
    there = SUBMISSIONS / name
    assert agreement(read_submission(there), read_verified(there / "verified.json")).off == 0


def test_the_table_says_how_many_claims_were_off_and_what_they_were_allowed(
    submitted, choice, tmp_path
):
    def row() -> str:
        assert Report((submitted,), tmp_path / "report").run(Console()) == 0
        text = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
        below = text.partition("## Submissions")[2].splitlines()
        return next(line for line in below if line.startswith("| entry |"))

    claims = sum(len(claim.costs) for claim in read_submission(submitted).claims)
    write_verified(verify(read_submission(submitted), choice)[1], submitted / "verified.json")
    assert f"| 2 | 0 | 0.5 | 0 of {claims} |" in row()
    edit(submitted, 0, lambda record: record.update(arithmetic=""))
    edit(submitted, 0, lambda r: r["steps"][-1].update(accuracy=r["steps"][-1]["accuracy"] + 1))
    asked = replace(choice, other_arithmetic=True)
    write_verified(verify(read_submission(submitted), asked)[1], submitted / "verified.json")
    assert f"| 2 | 0 | 12 | 1 of {claims} |" in row()
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert f"<td>12</td><td>1 of {claims}</td>" in page
    # a run that was refused claims nothing that counts
    write_verified(verify(read_submission(submitted), choice)[1], submitted / "verified.json")
    kept = len(read_submission(submitted).claims[1].costs)
    assert f"| 1 | 1 | 0.5 | 0 of {kept} |" in row()


def test_a_folder_that_is_not_there_is_no_refused_run(tmp_path):
    done = run_main(leaderboard.main, "verify", str(tmp_path / "nowhere"))
    assert done.returncode == 126
    assert done.stderr == f"error: {tmp_path / 'nowhere'}: there is no such folder.\n"


def test_more_policies_than_the_limit_are_not_begun(submitted, choice, capsys, monkeypatch):
    submission = read_submission(submitted)
    count = len(policies_of(submission.claims))
    steps = sum(len(claim.costs) for claim in submission.claims)
    assert 2 < count < steps  # a policy of two runs is executed once
    monkeypatch.setattr(judge, "_measure", None)  # nothing can be executed
    argv = ["verify", str(submitted), "--cache", str(choice.cache), "--jobs", "1", "--limit"]
    done = run_main(leaderboard.main, *argv, str(count - 1))
    assert done.returncode == 126
    assert done.stdout == f"{submitted}: {count} different policies to execute\n"
    assert done.stderr == (
        f"error: {submitted}: it has {count} policies to execute, and the limit is {count - 1}: "
        "raise the limit, or execute a sample of its runs.\n"
    )
    assert not (submitted / "verified.json").exists()
    done = run_main(leaderboard.main, *argv, "0")
    assert done.returncode == 126
    assert "the limit is 1 policy or more, not 0" in done.stderr
    monkeypatch.undo()
    assert run_main(leaderboard.main, *argv, str(count)).returncode == 0


def test_the_limit_lets_all_that_is_published_in_and_is_far_from_what_a_file_may_hold():
    largest = max(len(policies_of(read_submission(folder).claims)) for folder in published())
    assert 2 * largest < Verify().limit < MOST_RUNS


def test_published_numbers_of_another_machine_are_held_against_scores(submitted, choice):
    submission = read_submission(submitted)
    _, fine = verify(submission, choice)
    old = fine.runs[0].scored[-1]
    for points, problem in ((OTHER.score - 0.5, False), (OTHER.score + 0.5, True)):
        far = with_policy(fine, old, replace(old, test=tuple(a - points for a in old.test)))
        far = replace(far, arithmetic="0123456789abcdef")
        verdicts, _ = verify(submission, choice, published=far)
        assert any(verdict.reasons for verdict in verdicts) == problem


def test_a_run_that_was_refused_when_published_is_no_new_failure(submitted, choice, capsys):
    edit(submitted, 0, lambda r: r["steps"][-1].update(accuracy=r["steps"][-1]["accuracy"] + 1))
    assert Verify((submitted,), cache=choice.cache, jobs=1).run(Console()) == 1
    assert Verify((submitted,), check=True, cache=choice.cache, jobs=1).run(Console()) == 0
    assert "(as it is published)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["verified.json", "verified.json.part"])
def test_nothing_is_written_through_a_link_in_the_folder(submitted, choice, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (submitted / name).symlink_to(outside)
    assert Verify((submitted,), cache=choice.cache, jobs=1).run(Console()) == 0
    assert outside.read_text() == "precious"
    assert not (submitted / "verified.json").is_symlink()


@pytest.mark.parametrize("name", ["zero\u200bwidth", "n" * 201])
def test_a_folder_whose_name_no_table_could_show_is_refused(submitted, tmp_path, name):
    submitted.rename(tmp_path / name)
    with pytest.raises(InputError, match="must have a name of at most 200 printable characters"):
        read_submission(tmp_path / name)


def test_a_folder_that_is_a_link_is_refused(submitted, tmp_path):
    (tmp_path / "link").symlink_to(submitted, target_is_directory=True)
    with pytest.raises(InputError, match="is a link: give the folder itself"):
        read_submission(tmp_path / "link")


def test_a_track_means_what_it_meant_when_its_numbers_were_published():
    weights = ROOT / "haq_env" / "networks" / "weights"
    for name, digest in (
        ("v1_digits", "426e7d47e473fea6"),
        ("v2_digits", "185152cf99f0aebe"),
        ("v1_050_cifar10", "dfb3f3ee5dca597e"),
    ):
        file = weights / f"mobilenet_{name}.safetensors"
        assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest)
    assert load_dataset("digits").digest() == "b2d0ff9136a3065c"
    assert {
        name: (
            round(track.task().budget.limit, 9),
            *(side[1] for side in to_digits(track.task().uniform())),
        )
        for name, track in TRACKS.items()
    } == {
        "digits-bismo-edge-w3a2": (0.142075, "3", "2"),
        "digits-bismo-edge-w4a2": (0.14987, "4", "2"),
        "digits-bismo-edge-w6a2": (0.16717, "6", "2"),
        "digits-bismo-cloud-w2a3": (0.55628, "2", "3"),
        "digits-bismo-cloud-w3a3": (0.63836, "3", "3"),
        "digits-bitfusion-w2a4": (0.040408, "2", "4"),
        "digits-bitfusion-w2a6": (0.041196, "2", "6"),
        "digits-bitfusion-w2a8": (0.041826, "2", "8"),
        "digits-transfer-network": (0.65723, "3", "2"),
        "digits-transfer-device": (0.040408, "2", "4"),
        "digits-transfer-budget": (0.16717, "6", "2"),
        "cifar10-bismo-edge-w4a2": (1.20193, "4", "2"),
        "cifar10-bismo-cloud-w3a3": (3.216195, "3", "3"),
        "cifar10-bitfusion-w3a8": (0.408648, "3", "8"),
    }
    elsewhere = {name: track.images for name, track in TRACKS.items() if track.images}
    assert elsewhere == {name: "ed5bad089e439be7" for name in TRACKS if name.startswith("cifar10-")}
    sources = {name: track.source.name for name, track in TRACKS.items() if track.source}
    assert sources == {name: TRACK for name in TRACKS if name.startswith("digits-transfer-")}


@pytest.mark.parametrize("name", TRACKS)
def test_zero_is_the_one_uniform_policy_that_no_other_is_wider_than(name):
    task = find_track(name).task()
    widths = [(w, a) for w in range(2, 9) for a in range(2, 9)]
    fit = [(w, a) for w, a in widths if task.budget.fits(task.space.uniform(w, a))]
    widest = tuple(int(bits) for bits in task.uniform()[1])
    assert all(w <= widest[0] and a <= widest[1] for w, a in fit)


# -- what is published -------------------------------------------------------------------------


def published() -> list[Path]:
    return [path.parent for path in sorted(SUBMISSIONS.glob("*/verified.json"))]


def needs_images(folder: Path) -> bool:
    cells = [claim.outcome.cell for claim in read_submission(folder).claims]
    return any(find_track(cell.track).images for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("folder", published(), ids=lambda folder: folder.name)
def test_some_of_the_published_runs_come_out_again(folder, tmp_path):
    images = cache_folder() / "cifar10"
    if needs_images(folder) and not any(images.glob("cifar-10-batches-*/test_batch*")):
        pytest.skip(f"CIFAR-10's original files are not in {images}")
    seed = secrets.randbelow(2**31)  # whoever could foresee the draw could forge the rest
    print(f"drawn with --seed {seed}")
    argv = ["--sample", "3", "--seed", str(seed), "--cache", str(tmp_path / "c"), "--jobs", "2"]
    done = command("verify", "--check", str(folder), *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    if can_be_pinned():
        assert "verified.json is from another" not in done.stdout, "to the last digit, then"


def command(*argv: str) -> Done:
    """Run the command in a process of its own, which has not loaded torch before it begins."""
    script = ROOT / "benchmarks" / "leaderboard.py"
    environment = {name: value for name, value in os.environ.items() if name not in AVX2}
    done = subprocess.run(
        [sys.executable, script, *argv], capture_output=True, text=True, env=environment
    )
    return Done(done.returncode, done.stdout, done.stderr)


def can_be_pinned() -> bool:
    """Tell whether this machine can repeat what is published: AVX2, and the same torch."""
    manifest = read_submission(SUBMISSIONS / "law").manifest
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return " avx2 " in flags and manifest.versions["torch"] == version("torch")
