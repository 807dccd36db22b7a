"""A submission: a folder with a manifest and the policies of runs, and how it is read safely.

``manifest.json`` says who ran what with which settings, ``runs.jsonl`` has one run a line. Nothing
else in the folder is opened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from haq_env.errors import InputError
from haq_env.files import writing
from haq_env.leaderboard.arithmetic import FORM
from haq_env.leaderboard.protocol import (
    MOST_EVALUATIONS,
    SEEDS,
    TUNING_SEEDS,
    VERSION,
    Cell,
    Improvement,
    Outcome,
    find_track,
)
from haq_env.leaderboard.untrusted import Fields, parse, read_text
from haq_env.task import Task
from haq_env.versions import COMMIT

MANIFEST, RUNS = "manifest.json", "runs.jsonl"
MANIFEST_BYTES, RUNS_BYTES = 1_000_000, 20_000_000  # what is read of a file at most
MOST_RUNS, MOST_LAYERS = 20_000, 1000
METHOD = "[a-z0-9-]{1,40}"  # names of methods, of one's own too
LONGEST_NAME = 200  # characters of a folder, see `Fields.text`
CODE = r"(https://[A-Za-z0-9._~/#?=&%@:+-]{1,300})?"


@dataclass(frozen=True)
class Manifest:
    """What is said of a submission by those who made it. Nothing of it is ranked.

    Attributes:
        title: of the submission, in a few words.
        authors: who made it.
        code: https address of the code with its commit; empty if it is this package.
        settings: setting to value, as text; empty if all have their defaults.
        tuned: what was tried before the settings were chosen: ranges, how often, on what.
        tuning_seeds: seeds that settings were tuned on, 100 and above.
        environment_changed: what was changed in the environments; empty if nothing.
        hardware: what it ran on.
        seconds: time of all runs, added up.
        versions: package to version.
        commit: of this package's checkout that the submission was written from, see
            `haq_env.versions.commit`; None where there was none, or nobody has noted it.
    """

    title: str
    authors: tuple[str, ...]
    code: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    tuned: str = ""
    tuning_seeds: tuple[int, ...] = ()
    environment_changed: str = ""
    hardware: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None


@dataclass(frozen=True)
class Claim:
    """A run as it is claimed.

    Attributes:
        outcome: the run and its improvements, with claimed accuracies.
        costs: claimed cost of each improvement, in the unit of the track's metric.
    """

    outcome: Outcome
    costs: tuple[float, ...]


@dataclass(frozen=True)
class Submission:
    """What a folder says.

    Attributes:
        name: of the folder.
        manifest: who and how.
        claims: the runs.
        digests: SHA-256 of each file that was read.
    """

    name: str
    manifest: Manifest
    claims: tuple[Claim, ...]
    digests: dict[str, str]


def write_submission(
    folder: str | Path,
    manifest: Manifest,
    outcomes: Sequence[Outcome],
    *,
    overwrite: bool = False,
) -> Submission:
    """Write a folder; it is there as a whole or not at all.

    Args:
        folder: must not exist yet, or be empty.
        manifest: who and how.
        outcomes: finished runs with published seeds.
        overwrite: replace a submission that is there, and what was verified of it.

    Returns:
        What a reader will read.

    Raises:
        InputError: no run, one that the protocol does not allow, or the folder cannot be written.
    """
    folder = Path(folder)
    if not outcomes:
        raise InputError("there is no finished run to submit.")
    if not folder.name:
        raise InputError("a submission needs a folder of its own, whose name is its name.")
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    ours = {MANIFEST, RUNS, "verified.json"}  # nothing else is deleted
    if taken and not (overwrite and folder.is_dir() and {p.name for p in folder.iterdir()} <= ours):
        raise InputError(f"{folder} is there already: give another folder, or overwrite it.")
    tasks: dict[str, Task] = {}
    lines = []
    for outcome in outcomes:
        track = outcome.cell.track
        if track not in tasks:
            tasks[track] = find_track(track).task()
        try:
            lines.append(json.dumps(_run_record(outcome, tasks[track]), allow_nan=False) + "\n")
        except ValueError as error:
            raise InputError(f"{outcome.cell} has a number that is none: {error}.") from error
    head = {"protocol": VERSION, "runs": len(lines), **asdict(manifest)}
    # what a kill leaves is no submission
    scratch, before = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "before"))
    try:
        with writing(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            text = json.dumps(head, indent=1, allow_nan=False) + "\n"
            (scratch / MANIFEST).write_text(text, encoding="utf-8")
            (scratch / RUNS).write_text("".join(lines), encoding="utf-8")
        read_submission(scratch)  # what a reader would refuse is never put in place
        with writing(folder):
            if overwrite and folder.exists():
                shutil.rmtree(before, ignore_errors=True)
                folder.replace(before)  # it is deleted when the new one is there
            scratch.replace(folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        if before.exists() and not folder.exists():
            before.replace(folder)
        shutil.rmtree(scratch, ignore_errors=True)
    return read_submission(folder)


def read_submission(folder: str | Path) -> Submission:
    """Read a folder that anybody may have written.

    Raises:
        InputError: a file is missing, cut off, too large, a link or not of this form, a track is
            unknown, a seed is none of the published ones, or one run is there twice.
    """
    folder = Path(folder)
    if folder.is_symlink():
        raise InputError(f"{folder} is a link: give the folder itself.")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.")
    name = folder.resolve().name
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise InputError(
            f"the folder {name[:LONGEST_NAME]!r} must have a name of at most {LONGEST_NAME} "
            "printable characters."
        )
    head = read_text(folder, MANIFEST, MANIFEST_BYTES)
    fields = Fields(parse(head, MANIFEST), MANIFEST)
    version = fields.integer("protocol")
    if version != VERSION:
        raise InputError(
            f"{MANIFEST}: the protocol is {version}, and this haq-env verifies {VERSION}."
        )
    count = fields.integer("runs", 1, MOST_RUNS)
    manifest = _manifest(fields)
    text = read_text(folder, RUNS, RUNS_BYTES)
    if not text.endswith("\n"):
        raise InputError(f"{RUNS} is cut off: its last line does not end.")
    lines = text[:-1].split("\n")
    if len(lines) != count:
        raise InputError(
            f"{RUNS} has {len(lines)} runs, and {MANIFEST} says {count}: was it cut off?"
        )
    claims = [_claim(line, f"{RUNS}, line {row}") for row, line in enumerate(lines, 1)]
    seen: set[tuple[str, str, int]] = set()
    for row, claim in enumerate(claims, 1):
        cell = claim.outcome.cell
        key = (cell.track, cell.method, cell.seed)
        if key in seen:
            raise InputError(f"{RUNS}, line {row}: {cell} is there twice.")
        seen.add(key)
    digests = {
        file: hashlib.sha256(content.encode()).hexdigest()
        for file, content in ((MANIFEST, head), (RUNS, text))
    }
    return Submission(name, manifest, tuple(claims), digests)


def _run_record(outcome: Outcome, task: Task) -> dict[str, Any]:
    cell = outcome.cell
    steps = []
    for step in outcome.steps:
        steps.append({**asdict(step), "cost": task.cost(step.bits)})
    return {
        "track": cell.track,
        "method": cell.method,
        "seed": cell.seed,
        "budget": cell.evaluations,
        "evaluations": outcome.evaluations,
        "charge": outcome.charge,
        "repeats": outcome.repeats,
        "seconds": outcome.seconds,
        "arithmetic": outcome.arithmetic,
        "steps": steps,
    }


def _manifest(fields: Fields) -> Manifest:
    manifest = Manifest(
        title=fields.text("title"),
        authors=fields.texts("authors"),
        code=fields.text("code", longest=310, pattern=CODE),
        settings=fields.table("settings"),
        tuned=fields.text("tuned", longest=5000),
        tuning_seeds=fields.integers("tuning_seeds"),
        environment_changed=fields.text("environment_changed", longest=5000),
        hardware=fields.text("hardware"),
        seconds=fields.number("seconds"),
        versions=fields.table("versions"),
        commit=fields.text_or_none("commit", COMMIT),  # older manifests do not have it
    )
    fields.done()
    if not manifest.title or not manifest.authors:
        raise InputError(f"{MANIFEST}: a title and one author or more are needed.")
    wrong = [seed for seed in manifest.tuning_seeds if seed < TUNING_SEEDS]
    if wrong:
        raise InputError(
            f"{MANIFEST}: settings were tuned on seed {wrong[0]}; tuning has {TUNING_SEEDS} and "
            "above."
        )
    return manifest


def _claim(line: str, where: str) -> Claim:
    fields = Fields(parse(line, where), where)
    track = find_track(fields.text("track", longest=80)).name
    method = fields.text("method", longest=40, pattern=METHOD)
    seed = fields.integer("seed")
    if seed not in SEEDS:
        raise InputError(
            f"{where}: seed {seed} is outside the protocol: published runs have seeds {SEEDS[0]} "
            f"to {SEEDS[-1]}."
        )
    cell = Cell(track, method, seed, fields.integer("budget", 1, MOST_EVALUATIONS))
    evaluations = fields.integer("evaluations", 1, cell.evaluations)
    charge, seconds = fields.number("charge"), fields.number("seconds")
    repeats = fields.integer("repeats", 0, evaluations)
    arithmetic = fields.text("arithmetic", pattern=FORM)
    steps: list[Improvement] = []
    costs: list[float] = []
    for number, value in enumerate(fields.items("steps", evaluations), 1):
        inner = Fields(value, f"{where}, step {number}")
        # Which digits a track allows is seen when it is verified.
        digits = {name: inner.text(name, longest=MOST_LAYERS) for name in ("w_bits", "a_bits")}
        step = Improvement(
            inner.integer("evaluation", 1), **digits, accuracy=inner.number("accuracy")
        )
        costs.append(inner.number("cost"))
        inner.done()
        before = steps[-1] if steps else Improvement(0, "", "", -1.0)
        if step.evaluation <= before.evaluation or step.accuracy <= before.accuracy:
            raise InputError(f"{where}, step {number}: every step must be a later and better one.")
        steps.append(step)
    fields.done()
    if not steps or steps[0].evaluation != 1 or steps[-1].evaluation > evaluations:
        raise InputError(
            f"{where}: steps must begin with evaluation 1 and end at {evaluations} at the latest."
        )
    outcome = Outcome(
        cell, tuple(steps), evaluations, charge, repeats, seconds, arithmetic=arithmetic
    )
    return Claim(outcome, tuple(costs))
