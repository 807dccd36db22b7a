"""The leaderboard's commands: those of its documentation, and what they write."""

import re
import shlex
from pathlib import Path

import pytest
from leaderboard import Run, parse
from leaderboard_folders import SUBMISSIONS
from leaderboard_submit import Submit, chosen

from haq_env.leaderboard.entries import OWN
from haq_env.leaderboard.protocol import Cell, Outcome
from haq_env.leaderboard.submission import read_submission

ROOT = Path(__file__).parent.parent
RULES = (ROOT / "benchmarks" / "LEADERBOARD.md").read_text(encoding="utf-8")
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
