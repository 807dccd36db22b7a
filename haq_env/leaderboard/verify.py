"""Executing a submission again: what does not come out as claimed is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from haq_env.errors import InputError
from haq_env.leaderboard.arithmetic import arithmetic, tolerance
from haq_env.leaderboard.claims import wrong_at_once
from haq_env.leaderboard.judge import Question, measure_all
from haq_env.leaderboard.protocol import Cell, Improvement, Outcome, find_track
from haq_env.leaderboard.published import differences
from haq_env.leaderboard.submission import Claim, Submission
from haq_env.leaderboard.verified import Key, Scored, Verified, VerifiedRun
from haq_env.policy import from_digits
from haq_env.task import Task


@dataclass(frozen=True)
class Verdict:
    """What came of one run.

    Attributes:
        cell: the run.
        problems: why it is refused, one sentence each; empty if it is as it was claimed.
        differences: what is published of it and does not come out again, likewise.
    """

    cell: Cell
    problems: tuple[str, ...]
    differences: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that is wrong."""
        return self.problems + self.differences

    def __str__(self) -> str:
        mark = "refused" if self.reasons else "fine"
        return f"{mark}: {self.cell}" + "".join(f"; {reason}" for reason in self.reasons)


@dataclass(frozen=True)
class Choice:
    """Which runs are executed, and how.

    Attributes:
        sample: so many runs, drawn at random; None is all of them.
        seed: of the draw.
        cache: evaluation cache of the verifier.
        jobs: processes.
        limit: different policies that are executed at most; None is no limit.
        other_arithmetic: claims from another arithmetic may be off by `OTHER`, see `is_lenient`.
    """

    sample: int | None = None
    seed: int = 0
    cache: Path | None = None
    jobs: int = 1
    limit: int | None = None
    other_arithmetic: bool = False

    def of(self, claims: Sequence[Claim]) -> list[Claim]:
        """Return the runs that are executed."""
        if self.seed < 0:
            raise InputError(f"the seed of a draw must not be negative, as {self.seed} is.")
        if self.sample is None:
            return list(claims)
        if self.sample < 1:
            raise InputError(f"a sample has 1 run or more, not {self.sample}.")
        count = min(self.sample, len(claims))
        drawn = np.random.default_rng(self.seed).choice(len(claims), count, replace=False)
        return [claims[index] for index in sorted(drawn)]


def policies_of(claims: Iterable[Claim]) -> list[Key]:
    """List the different policies of runs: what is executed."""
    return sorted({_key(c.outcome.cell, step) for c in claims for step in c.outcome.steps})


def is_lenient(choice: Choice, published: Verified | None = None) -> bool:
    """Say whether claims from another arithmetic than this machine's may be off by `OTHER`.

    They may where that was asked for, and where what is published is from another arithmetic, so
    that this machine cannot tell whether they were right. By default they may not: which arithmetic
    a claim is from is only said, and 12 points are worth saying it.
    """
    elsewhere = published is not None and published.arithmetic != arithmetic()
    return choice.other_arithmetic or elsewhere


def verify(
    submission: Submission,
    choice: Choice | None = None,
    *,
    published: Verified | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Verdict], Verified]:
    """Execute a submission again.

    Every policy must be one of its track and inside the budget, its cost and its accuracy inside
    the search must come out as claimed (`COST_TOLERANCE`, `tolerance`, `is_lenient`), and every
    run must begin with the uniform policy. Then the policies that a run had at its checkpoints,
    by the accuracies measured here, are finetuned with fresh seeds and measured on the test
    images, which is their score.

    Args:
        submission: as it was read.
        choice: which runs, and how; all of them when None.
        published: the verified numbers that are published; what is executed must agree with them.
        progress: is told how many policies have been executed, and how many there are.

    Returns:
        A verdict for each run that was chosen, and the verified numbers of those that are fine.

    Raises:
        InputError: a process died, the sample is empty, or there are more policies than the limit.
    """
    choice = Choice() if choice is None else choice
    claims = choice.of(submission.claims)
    _check_limit(claims, choice.limit)
    tasks = {track: find_track(track).task() for track in sorted(_tracks(claims))}
    problems = {c.outcome.cell: wrong_at_once(c, tasks[c.outcome.cell.track]) for c in claims}
    fine = [claim for claim in claims if not problems[claim.outcome.cell]]
    held_out = _ask(policies_of(fine), False, choice, progress)
    policies = {key: _scored(key, accuracy, tasks[key[0]]) for key, (accuracy,) in held_out.items()}
    lenient = is_lenient(choice, published)
    for claim in fine:
        problems[claim.outcome.cell] += _executed(claim, policies, lenient)
    passed = [claim.outcome for claim in fine if not problems[claim.outcome.cell]]
    fresh = {policy.key for outcome in passed for policy in _run(outcome, policies).scored}
    if published is not None:  # what is published is looked at, whatever it is published for
        told = {policy.key for policy in published.policies if policy.test}
        fresh |= told & {_key(o.cell, step) for o in passed for step in o.steps}
    for key, test in _ask(sorted(fresh), True, choice, progress).items():
        policies[key] = replace(policies[key], test=test)
    runs = {outcome.cell: _run(outcome, policies) for outcome in passed}
    others = {} if published is None else differences(runs.values(), published)
    verdicts = [
        Verdict(cell, tuple(problems[cell]), tuple(others.get(cell, ()))) for cell in problems
    ]
    return verdicts, _verified(submission, runs.values(), verdicts)


def _check_limit(claims: Sequence[Claim], limit: int | None) -> None:
    """Refuse to begin what takes longer than whoever verifies has in mind."""
    if limit is None:
        return
    if limit < 1:
        raise InputError(f"the limit is 1 policy or more, not {limit}.")
    if (count := len(policies_of(claims))) > limit:
        raise InputError(
            f"it has {count:,} policies to execute, and the limit is {limit:,}: raise the limit, "
            "or execute a sample of its runs."
        )


def _ask(
    keys: Sequence[Key], fresh: bool, choice: Choice, progress: Callable[[int, int], None]
) -> dict[Key, tuple[float, ...]]:
    answers = measure_all([Question(*key, fresh) for key in keys], choice.cache, choice.jobs)
    found: dict[Key, tuple[float, ...]] = {}
    for key, answer in zip(keys, answers, strict=True):
        found[key] = answer
        progress(len(found), len(keys))
    return found


def _tracks(claims: Sequence[Claim]) -> set[str]:
    return {claim.outcome.cell.track for claim in claims}


def _key(cell: Cell, step: Improvement) -> Key:
    return cell.track, step.w_bits, step.a_bits


def _executed(claim: Claim, policies: Mapping[Key, Scored], lenient: bool) -> list[str]:
    """Find accuracies that do not come out as claimed."""
    problems = []
    allowed = tolerance(claim.outcome.arithmetic, lenient=lenient).single
    for step in claim.outcome.steps:
        found = policies[_key(claim.outcome.cell, step)].accuracy
        if abs(found - step.accuracy) > allowed:
            problems.append(
                f"the policy of evaluation {step.evaluation} is claimed to have "
                f"{step.accuracy:.2f} %, and has {found:.2f} %"
            )
    return problems


def _scored(key: Key, accuracy: float, task: Task) -> Scored:
    cost = task.cost(from_digits(key[1], key[2]))
    ratio = cost / task.budget.reference
    return Scored(*key, cost=cost, cost_ratio=ratio, accuracy=accuracy)


def _run(outcome: Outcome, policies: Mapping[Key, Scored]) -> VerifiedRun:
    return VerifiedRun(
        outcome.cell,
        tuple((step.evaluation, policies[_key(outcome.cell, step)]) for step in outcome.steps),
        outcome.evaluations,
        outcome.charge,
        outcome.repeats,
        outcome.seconds,
    )


def _verified(
    submission: Submission, runs: Iterable[VerifiedRun], verdicts: Sequence[Verdict]
) -> Verified:
    refused = {verdict.cell for verdict in verdicts if verdict.reasons}
    kept = [run for run in runs if run.cell not in refused]
    used = {policy for run in kept for _, policy in run.steps}
    manifest = submission.manifest
    return Verified(
        name=submission.name,
        title=manifest.title,
        authors=manifest.authors,
        code=manifest.code,
        environment_changed=manifest.environment_changed,
        hardware=manifest.hardware,
        seconds=manifest.seconds,
        digests=submission.digests,
        policies=tuple(sorted(used, key=lambda policy: policy.key)),
        runs=tuple(sorted(kept, key=lambda run: (run.cell.track, run.cell.method, run.cell.seed))),
        refused=tuple(str(verdict) for verdict in verdicts if verdict.reasons),
        arithmetic=arithmetic(),
    )
