"""Verified numbers: what executing a submission again gave. Tables are made from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haq_env.errors import InputError
from haq_env.files import replace_file
from haq_env.leaderboard.arithmetic import FORM, Tolerance
from haq_env.leaderboard.protocol import (
    FRESH_SEEDS,
    MOST_EVALUATIONS,
    VERSION,
    Cell,
    checkpoints,
    find_track,
)
from haq_env.leaderboard.submission import CODE, METHOD, MOST_LAYERS, MOST_RUNS
from haq_env.leaderboard.untrusted import Fields, parse, read_text

FILE = "verified.json"
MOST_BYTES = 40_000_000
MOST_POLICIES = 200_000
Key = tuple[str, str, str]  # track, w_bits, a_bits
DIGITS = f"[1-8]{{1,{MOST_LAYERS}}}"


@dataclass(frozen=True)
class Scored:
    """A policy that has been executed.

    Attributes:
        track: name of its track.
        w_bits: a digit for each layer.
        a_bits: likewise.
        cost: in the unit of the track's metric.
        cost_ratio: to the cost of the 8-bit network.
        accuracy: top-1 on held-out images with the track's own seed, in percent.
        test: top-1 on test images for each of `FRESH_SEEDS`; empty where only the accuracy
            inside the search was of interest.
    """

    track: str
    w_bits: str
    a_bits: str
    cost: float
    cost_ratio: float
    accuracy: float
    test: tuple[float, ...] = ()

    @property
    def key(self) -> Key:
        """Track and bits: what it is found by."""
        return self.track, self.w_bits, self.a_bits

    @property
    def score(self) -> float:
        """Mean of the test accuracies, in percent."""
        return float(np.mean(self.test))

    def agrees(self, other: Scored, tolerance: Tolerance) -> bool:
        """Say whether both have the same accuracies that differ by so little, and no cost."""
        if len(self.test) != len(other.test):
            return False
        pairs = [(self.accuracy, other.accuracy), *zip(self.test, other.test, strict=True)]
        near = all(abs(ours - theirs) <= tolerance.single for ours, theirs in pairs)
        if self.test:
            near &= abs(self.score - other.score) <= tolerance.score
        return near and bool(
            np.isclose(self.cost, other.cost, rtol=1e-9)
            and np.isclose(self.cost_ratio, other.cost_ratio, rtol=1e-9)
        )


@dataclass(frozen=True)
class VerifiedRun:
    """A run whose policies have been executed.

    Attributes:
        cell: the run.
        steps: evaluation and policy of its improvements, in order.
        evaluations: how many policies it measured, as declared.
        charge: what it computed before, in evaluations, as declared.
        repeats: evaluations of known policies, as declared.
        seconds: outside the evaluator, as declared.
    """

    cell: Cell
    steps: tuple[tuple[int, Scored], ...]
    evaluations: int
    charge: float = 0.0
    repeats: int = 0
    seconds: float = 0.0

    def best_after(self, evaluations: int) -> Scored:
        """Return the policy that the run had after so many evaluations.

        It is the one of the highest accuracy inside the search, the first one where two are, as
        it was measured here: who claims more for one of them moves nothing.
        """
        found = [policy for number, policy in self.steps if number <= evaluations]
        return max(found, key=lambda policy: policy.accuracy)

    @property
    def scored(self) -> list[Scored]:
        """What is measured on test images: the uniform policy, and those at checkpoints."""
        counts = checkpoints(self.cell)
        return list(dict.fromkeys((self.steps[0][1], *map(self.best_after, counts))))


@dataclass(frozen=True)
class Verified:
    """The verified numbers of one submission.

    Attributes:
        name: of its folder.
        title: in a few words.
        authors: who made it.
        code: https address; empty if it is this package.
        environment_changed: what was changed in the environments; empty if nothing.
        hardware: what the runs were made on, as declared; empty if nobody says.
        seconds: time of all runs, added up, as declared; 0 if nobody says.
        digests: SHA-256 of the files that were executed.
        policies: every policy that was executed, once.
        runs: those that came out as claimed, by track, method and seed.
        refused: what was refused, and why, one line a run.
        arithmetic: of the machine that executed them, see `haq_env.leaderboard.arithmetic`.
    """

    name: str
    title: str
    authors: tuple[str, ...]
    code: str
    environment_changed: str
    hardware: str
    seconds: float
    digests: dict[str, str]
    policies: tuple[Scored, ...]
    runs: tuple[VerifiedRun, ...]
    refused: tuple[str, ...] = ()
    arithmetic: str = ""

    def save(self, path: str | Path) -> None:
        """Write the file, one line for each policy and run; it is replaced in one step.

        Raises:
            InputError: it cannot be written; what was there stays.
        """
        path = Path(path)
        numbers = {policy: number for number, policy in enumerate(self.policies)}
        head = {
            "protocol": VERSION,
            "name": self.name,
            "title": self.title,
            "authors": self.authors,
            "code": self.code,
            "environment_changed": self.environment_changed,
            "hardware": self.hardware,
            "seconds": self.seconds,
            "digests": self.digests,
            "refused": self.refused,
            "arithmetic": self.arithmetic,
        }
        policies = [
            [p.track, p.w_bits, p.a_bits, p.cost, p.cost_ratio, p.accuracy, *p.test]
            for p in self.policies
        ]
        runs = [
            {
                "track": run.cell.track,
                "method": run.cell.method,
                "seed": run.cell.seed,
                "budget": run.cell.evaluations,
                "evaluations": run.evaluations,
                "charge": run.charge,
                "repeats": run.repeats,
                "seconds": run.seconds,
                "steps": [[evaluation, numbers[policy]] for evaluation, policy in run.steps],
            }
            for run in self.runs
        ]
        lines = [f' "{key}": {json.dumps(value)}' for key, value in head.items()]
        lines += [f' "policies": [{_lines(policies)}]', f' "runs": [{_lines(runs)}]']
        replace_file(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> Verified:
        """Read the file.

        Raises:
            InputError: it is missing, damaged, of another protocol, or has something twice.
        """
        path = Path(path)
        where = f"{path.parent.name}/{path.name}"
        fields = Fields(parse(read_text(path.parent, path.name, MOST_BYTES), where), where)
        if (version := fields.integer("protocol")) != VERSION:
            raise InputError(f"{where}: the protocol is {version}, and this haq-env has {VERSION}.")
        policies = tuple(
            _policy(row, f"{where}, policy {number}")
            for number, row in enumerate(fields.items("policies", MOST_POLICIES))
        )
        runs = tuple(
            _run(value, policies, f"{where}, run {number}")
            for number, value in enumerate(fields.items("runs", MOST_RUNS))
        )
        if len({(r.cell.track, r.cell.method, r.cell.seed) for r in runs}) < len(runs):
            raise InputError(f"{where} has one run twice.")
        if len({(p.track, p.w_bits, p.a_bits) for p in policies}) < len(policies):
            raise InputError(f"{where} has one policy twice.")
        found = cls(
            name=fields.text("name"),
            title=fields.text("title"),
            authors=fields.texts("authors"),
            code=fields.text("code", longest=310, pattern=CODE),
            environment_changed=fields.text("environment_changed", longest=5000),
            hardware=fields.text("hardware"),
            seconds=fields.number("seconds"),
            digests=fields.table("digests"),
            policies=policies,
            runs=runs,
            refused=fields.texts("refused", most=MOST_RUNS, longest=100_000),
            arithmetic=fields.text("arithmetic", pattern=FORM),
        )
        fields.done()
        return found


def load_all(folders: Iterable[str | Path]) -> list[Verified]:
    """Read the verified numbers of submissions, in the order of their names.

    Raises:
        InputError: as `Verified.load`, or two submissions have one name.
    """
    found = sorted((Verified.load(Path(each) / FILE) for each in folders), key=lambda v: v.name)
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise InputError(f"two submissions have the name {max(names, key=names.count)!r}.")
    return found


def _lines(values: Sequence[object]) -> str:
    rows = ",\n".join(f"  {json.dumps(value, allow_nan=False)}" for value in values)
    return f"\n{rows}\n " if rows else ""


def _policy(row: Any, where: str) -> Scored:
    names = ("track", "w_bits", "a_bits", "cost", "cost_ratio", "accuracy")
    if not isinstance(row, list) or len(row) not in (len(names), len(names) + len(FRESH_SEEDS)):
        raise InputError(f"{where} must be a list of {', '.join(names)} and test accuracies.")
    tests = tuple(str(seed) for seed in FRESH_SEEDS)[: len(row) - len(names)]
    fields = Fields(dict(zip((*names, *tests), row, strict=True)), where)
    track = find_track(fields.text("track", longest=80)).name
    w_bits, a_bits = (
        fields.text(name, longest=MOST_LAYERS, pattern=DIGITS) for name in ("w_bits", "a_bits")
    )
    cost, ratio = fields.number("cost"), fields.number("cost_ratio")
    accuracy = fields.number("accuracy", 0, 100)
    return Scored(
        track, w_bits, a_bits, cost, ratio, accuracy, tuple(fields.number(t, 0, 100) for t in tests)
    )


def _run(value: Any, policies: Sequence[Scored], where: str) -> VerifiedRun:
    fields = Fields(value, where)
    cell = Cell(
        find_track(fields.text("track", longest=80)).name,
        fields.text("method", longest=40, pattern=METHOD),
        fields.integer("seed"),
        fields.integer("budget", 1, MOST_EVALUATIONS),
    )
    steps: list[tuple[int, Scored]] = []
    for pair in fields.items("steps", cell.evaluations):
        inner = Fields(dict(_named(pair, where)), where)
        evaluation = inner.integer("evaluation", 1, cell.evaluations)
        policy = policies[inner.integer("policy", 0, len(policies) - 1)]
        if policy.track != cell.track or (steps and evaluation <= steps[-1][0]):
            raise InputError(f"{where}: its steps are not in order, or of another track.")
        steps.append((evaluation, policy))
    if not steps or steps[0][0] != 1:
        raise InputError(f"{where}: its steps must begin with evaluation 1.")
    run = VerifiedRun(
        cell,
        tuple(steps),
        fields.integer("evaluations", 1, cell.evaluations),
        fields.number("charge"),
        fields.integer("repeats"),
        fields.number("seconds"),
    )
    fields.done()
    return run


def _named(pair: Any, where: str) -> list[tuple[str, Any]]:
    """Name the two numbers of a step."""
    if not isinstance(pair, list) or len(pair) != 2:
        raise InputError(f"{where}: a step must be a list of evaluation and policy.")
    return list(zip(("evaluation", "policy"), pair, strict=True))
