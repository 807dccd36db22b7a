"""The file of verified numbers beside a submission: written in one step, read like a stranger's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from haq_env.errors import InputError
from haq_env.files import replace_file
from haq_env.leaderboard.arithmetic import FORM
from haq_env.leaderboard.protocol import (
    FRESH_SEEDS,
    MOST_EVALUATIONS,
    VERSION,
    Cell,
    find_track,
)
from haq_env.leaderboard.submission import CODE, METHOD, MOST_LAYERS, MOST_RUNS
from haq_env.leaderboard.untrusted import Fields, parse, read_text
from haq_env.leaderboard.verified import Scored, Verified, VerifiedRun

FILE = "verified.json"
MOST_BYTES = 40_000_000
MOST_POLICIES = 200_000
DIGITS = f"[1-8]{{1,{MOST_LAYERS}}}"


def write_verified(verified: Verified, path: str | Path) -> None:
    """Write the file, one line for each policy and run; it is replaced in one step.

    Raises:
        InputError: it cannot be written; what was there stays.
    """
    path = Path(path)
    numbers = {policy: number for number, policy in enumerate(verified.policies)}
    head = {
        "protocol": VERSION,
        "name": verified.name,
        "title": verified.title,
        "authors": verified.authors,
        "code": verified.code,
        "environment_changed": verified.environment_changed,
        "hardware": verified.hardware,
        "seconds": verified.seconds,
        "digests": verified.digests,
        "refused": verified.refused,
        "arithmetic": verified.arithmetic,
    }
    policies = [
        [p.track, p.w_bits, p.a_bits, p.cost, p.cost_ratio, p.accuracy, *p.test]
        for p in verified.policies
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
        for run in verified.runs
    ]
    lines = [f' "{key}": {json.dumps(value)}' for key, value in head.items()]
    lines += [f' "policies": [{_lines(policies)}]', f' "runs": [{_lines(runs)}]']
    replace_file(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_verified(path: str | Path) -> Verified:
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
    found = Verified(
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


def read_all(folders: Iterable[str | Path]) -> list[Verified]:
    """Read the verified numbers of submissions, in the order of their names.

    Raises:
        InputError: as `read_verified`, or two submissions have one name.
    """
    found = sorted((read_verified(Path(each) / FILE) for each in folders), key=lambda v: v.name)
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
