"""What a small sweep has left at some moment: runs, evaluations, log, and the table from them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

from leaderboard_log import DONE, Entry, Log, done_again

from haq_env.leaderboard.protocol import FRESH_SEEDS, Cell, Improvement, Outcome, find_track
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.store import CACHE, Store
from haq_env.leaderboard.table import markdown
from haq_env.leaderboard.verified import Scored, Verified, VerifiedRun

# a table knows the tracks of the protocol only, so it has the name of one
REAL = find_track("digits-bismo-edge-w3a2")
CHEAP = replace(REAL, settings={**REAL.settings, "evaluator": "ptq_bn"})
METHODS = ("random", "evolution", "annealing", "ilp-fit", "a2c")
TIMED = ("ilp-fit",)  # methods whose charge is a ratio of two times
CELLS = [Cell(CHEAP.name, method, 0, 16) for method in METHODS]
LOG = "log.txt"  # in a sweep's folder


@dataclass(frozen=True)
class Snapshot:
    """What a store's folder holds.

    Attributes:
        evaluations: rows of the cache by key.
        outcomes: of the finished runs, times left out.
        attempts: of the finished runs.
        log: what was begun and finished.
    """

    evaluations: dict[str, list[object]]
    outcomes: dict[Cell, Outcome]
    attempts: dict[Cell, int]
    log: list[Entry]

    @classmethod
    def of(cls, folder: Path) -> Snapshot:
        """Read a folder, which a sweep may be writing to."""
        rows = [(row, row.outcome) for row in Store(folder).rows() if row.outcome is not None]
        return cls(
            evaluations(folder),
            {row.cell: _without_times(outcome) for row, outcome in rows},
            {row.cell: row.attempts for row, _ in rows},
            Log(folder / LOG).read(),  # last: what is finished above was begun in it
        )

    def lost(self, later: Snapshot) -> str:
        """Say what is not in a later one as it was; empty if nothing."""
        for name in ("evaluations", "outcomes", "attempts"):
            then, now = getattr(self, name), getattr(later, name)
            gone = [key for key in then if now.get(key) != then[key]]
            if gone:
                return f"{len(gone)} of {len(then)} {name} lost or changed, such as {gone[0]}"
        return ""

    def done_again(self, later: Snapshot) -> str:
        """Say what was finished here and begun again later; empty if nothing."""
        there = len(self.log)
        if later.log[:there] != self.log:
            return "the log was changed"
        # a process may be killed between keeping an outcome and telling so
        done = [Entry(DONE, str(cell)) for cell in self.outcomes]
        return done_again([*self.log, *done], later.log[there:])

    def table(self) -> str:
        """Write the leaderboard's table, with the accuracies of the searches for those of tests."""
        runs = tuple(_run(self.outcomes[cell]) for cell in sorted(self.outcomes, key=str))
        policies = {policy for run in runs for _, policy in run.steps}
        verified = Verified(
            name="faults",
            title="Killed sweeps",
            authors=("haq-env",),
            code="",
            environment_changed="",
            hardware="",
            seconds=0.0,
            digests={},
            policies=tuple(sorted(policies, key=lambda policy: policy.key)),
            runs=runs,
        )
        return markdown([verified], Standings([verified], repetitions=100))


def _without_times(outcome: Outcome) -> Outcome:
    charge = 0.0 if outcome.cell.method in TIMED else outcome.charge
    return replace(outcome, seconds=0.0, charge=charge)


def _run(outcome: Outcome) -> VerifiedRun:
    steps = tuple((step.evaluation, _scored(step)) for step in outcome.steps)
    return VerifiedRun(outcome.cell, steps, outcome.evaluations, outcome.charge, outcome.repeats)


def _scored(step: Improvement) -> Scored:
    task = CHEAP.task()
    cost = task.cost(step.bits)
    ratio, test = cost / task.budget.reference, (step.accuracy,) * len(FRESH_SEEDS)
    return Scored(CHEAP.name, step.w_bits, step.a_bits, cost, ratio, step.accuracy, test)


def evaluations(folder: Path) -> dict[str, list[object]]:
    """Read all rows of the evaluation cache, by key."""
    path = folder / CACHE
    if not path.exists():
        return {}
    connection = sqlite3.connect(path, timeout=30)
    try:
        table = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        rows = connection.execute("SELECT * FROM evaluations").fetchall() if table else []
    finally:
        connection.close()
    return {key: values for key, *values in rows}
