"""Executing a submission again: what does not come out as claimed is refused with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from haq_env.errors import InputError
from haq_env.leaderboard.arithmetic import arithmetic, tolerance
from haq_env.leaderboard.judge import Question, measure_all
from haq_env.leaderboard.protocol import Cell, Outcome, Step, find_track
from haq_env.leaderboard.submission import Claim, Submission
from haq_env.leaderboard.verified import Key, Scored, Verified, VerifiedRun
from haq_env.policy import from_digits
from haq_env.task import Task

COST_TOLERANCE = 1e-9  # relative: costs are sums of a table, and the sum may be in another order


@dataclass(frozen=True)
class Verdict:
    """What came of one run.

    Attributes:
        cell: the run.
        problems: why it is refused, one sentence each; empty if it is as it was claimed.
    """

    cell: Cell
    problems: tuple[str, ...]

    def __str__(self) -> str:
        mark = "refused" if self.problems else "fine"
        return f"{mark}: {self.cell}" + "".join(f"; {problem}" for problem in self.problems)


@dataclass(frozen=True)
class Choice:
    """Which runs are executed, and how.

    Attributes:
        sample: so many runs, drawn at random; None is all of them.
        seed: of the draw.
        cache: evaluation cache of the verifier.
        jobs: processes.
    """

    sample: int | None = None
    seed: int = 0
    cache: Path | None = None
    jobs: int = 1

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


def verify(
    submission: Submission,
    choice: Choice | None = None,
    *,
    published: Verified | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Verdict], Verified]:
    """Execute a submission again.

    Every policy must be one of its track and inside the budget, its cost and its accuracy inside
    the search must come out as claimed (`COST_TOLERANCE`, `tolerance`), and every run must
    begin with the uniform policy. Then the policies that a run had at its checkpoints,
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
        InputError: a process died, or the sample is empty.
    """
    choice = Choice() if choice is None else choice
    claims = choice.of(submission.claims)
    tasks = {track: find_track(track).task() for track in sorted(_tracks(claims))}
    problems = {
        claim.outcome.cell: _at_once(claim, tasks[claim.outcome.cell.track]) for claim in claims
    }
    fine = [claim for claim in claims if not problems[claim.outcome.cell]]
    keys = sorted({_key(c.outcome.cell, step) for c in fine for step in c.outcome.steps})
    held_out = _ask(keys, False, choice, progress)
    policies = {key: _scored(key, accuracy, tasks[key[0]]) for key, (accuracy,) in held_out.items()}
    for claim in fine:
        problems[claim.outcome.cell] += _executed(claim, policies)
    passed = [claim.outcome for claim in fine if not problems[claim.outcome.cell]]
    keys = sorted({policy.key for outcome in passed for policy in _run(outcome, policies).scored})
    for key, test in _ask(keys, True, choice, progress).items():
        policies[key] = replace(policies[key], test=test)
    runs = {outcome.cell: _run(outcome, policies) for outcome in passed}
    if published is not None:
        for cell, reasons in _differences(runs.values(), published).items():
            problems[cell] += reasons
    verdicts = [Verdict(cell, tuple(problems[cell])) for cell in problems]
    return verdicts, _verified(submission, runs.values(), verdicts)


def _ask(
    keys: Sequence[Key], fresh: bool, choice: Choice, progress: Callable[[int, int], None]
) -> dict[Key, tuple[float, ...]]:
    answers = measure_all([Question(*key, fresh) for key in keys], choice.cache, choice.jobs)
    found: dict[Key, tuple[float, ...]] = {}
    for key, answer in zip(keys, answers, strict=True):
        found[key] = answer
        progress(len(found), len(keys))
    return found


def check_published(submission: Submission, published: Verified) -> None:
    """See that verified numbers are of a submission as it stands; nothing is executed.

    Whoever writes a submission may write this file too. Every submitted run must be in it or be
    refused in it, what it says of runs must be what was submitted, policies must be allowed, and
    costs must be theirs; only the accuracies are then left to be executed.

    Raises:
        InputError: they are of another submission, a run in them is not the submitted one, or a
            cost is wrong.
    """
    about = submission.manifest
    if published.digests != submission.digests:
        raise InputError("it was made from other files than those beside it: verify them again.")
    theirs = (published.name, published.title, published.authors, published.code)
    told = (published.environment_changed, published.hardware, published.seconds)
    if theirs != (submission.name, about.title, about.authors, about.code) or (
        told != (about.environment_changed, about.hardware, about.seconds)
    ):
        raise InputError("it names another submission: verify it again.")
    claimed = {claim.outcome.cell: claim.outcome for claim in submission.claims}
    scored = {policy.key for run in published.runs for policy in run.scored}
    for run in published.runs:
        outcome = claimed.get(run.cell)
        if (
            outcome is None
            or (run.evaluations, run.charge) != (outcome.evaluations, outcome.charge)
            or (run.repeats, run.seconds) != (outcome.repeats, outcome.seconds)
            or [(number, each.w_bits, each.a_bits) for number, each in run.steps]
            != [(step.evaluation, step.w_bits, step.a_bits) for step in outcome.steps]
            # a score of a policy that no run needs would be compared with nothing
            or any(bool(each.test) != (each.key in scored) for _, each in run.steps)
        ):
            raise InputError(f"{run.cell} is not what was submitted: verify it again.")
    if {*published.policies} != {policy for run in published.runs for _, policy in run.steps}:
        raise InputError("it has policies that no run has: verify it again.")
    ran = {run.cell for run in published.runs}
    refused = [
        cell
        for line in published.refused
        for cell in claimed
        if line.startswith(f"refused: {cell};")
    ]
    each_once = len(ran) + len(refused) == len(claimed) and ran.union(refused) == {*claimed}
    if len(refused) != len(published.refused) or not each_once:
        raise InputError("a submitted run is neither in it nor refused, or both: verify it again.")
    tasks = {track: find_track(track).task() for track in sorted(_tracks(submission.claims))}
    for claim in submission.claims:
        cell = claim.outcome.cell
        if cell in ran and (problems := _at_once(claim, tasks[cell.track])):
            raise InputError(f"{cell} should have been refused: {problems[0]}; verify it again.")
    for policy in published.policies:
        if policy.track not in tasks:
            raise InputError(
                f"it has a policy of {policy.track}, which no run is on: verify it again."
            )
        _check_cost(policy, tasks[policy.track])


def _check_cost(policy: Scored, task: Task) -> None:
    bits = from_digits(policy.w_bits, policy.a_bits)
    if len(bits) != len(task.layers):
        raise InputError(f"a policy of {policy.track} is for another network: verify it again.")
    cost = task.cost(bits)
    for found, real in ((policy.cost, cost), (policy.cost_ratio, cost / task.budget.reference)):
        if not math.isclose(found, real, rel_tol=COST_TOLERANCE):
            raise InputError(
                f"a policy of {policy.track} is said to cost {found:.9g}, and costs {real:.9g}: "
                "verify it again."
            )


def _tracks(claims: Sequence[Claim]) -> set[str]:
    return {claim.outcome.cell.track for claim in claims}


def _key(cell: Cell, step: Step) -> Key:
    return cell.track, step.w_bits, step.a_bits


def _at_once(claim: Claim, task: Task) -> list[str]:
    """Find what is wrong with a run before anything is executed."""
    for step, cost in zip(claim.outcome.steps, claim.costs, strict=True):
        where = f"the policy of evaluation {step.evaluation}"
        try:
            bits = step.bits
        except InputError as error:
            return [f"{where}: {error}"]
        if len(bits) != len(task.layers):
            return [
                f"{where} is for another network: it has {len(bits)} layers, and "
                f"{task.layers.network} has {len(task.layers)}"
            ]
        real = task.cost(bits)
        if not task.budget.fits(bits):
            return [
                f"{where} is past the budget: it costs {real:.9g}, and {task.budget.limit:.9g} "
                "is the limit"
            ]
        wrong = (task.space.clip(bits) != bits).any(axis=1)
        if wrong.any() and step.evaluation > 1:
            name = task.layers.names[int(np.argmax(wrong))]
            return [f"{where} gives layer {name!r} bits that the track does not allow"]
        if step.evaluation == 1 and not np.array_equal(bits, task.uniform()):
            return [f"{where} is not the uniform one that fits the budget"]
        if not math.isclose(real, cost, rel_tol=COST_TOLERANCE):
            return [f"{where} is claimed to cost {cost:.9g}, and costs {real:.9g}"]
    return []


def _executed(claim: Claim, policies: Mapping[Key, Scored]) -> list[str]:
    """Find accuracies that do not come out as claimed."""
    problems = []
    for step in claim.outcome.steps:
        found = policies[_key(claim.outcome.cell, step)].accuracy
        if abs(found - step.accuracy) > tolerance(claim.outcome.arithmetic).single:
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


def _differences(runs: Iterable[VerifiedRun], published: Verified) -> dict[Cell, list[str]]:
    """Find published numbers that do not come out again."""
    known = {policy.key: policy for policy in published.policies}
    there = {run.cell for run in published.runs}
    allowed = tolerance(published.arithmetic)
    found: dict[Cell, list[str]] = {}
    for run in runs:
        reasons = found.setdefault(run.cell, [])
        if run.cell not in there:
            reasons.append("the verified numbers that are published do not have it")
            continue
        for evaluation, ours in run.steps:
            theirs = known.get(ours.key)
            if theirs is None:
                reasons.append(f"the policy of evaluation {evaluation} is not published")
            elif not ours.agrees(theirs, allowed):
                reasons.append(
                    f"the published numbers of evaluation {evaluation}'s policy do not come out "
                    "again"
                )
    return found


def _verified(
    submission: Submission, runs: Iterable[VerifiedRun], verdicts: Sequence[Verdict]
) -> Verified:
    refused = {verdict.cell for verdict in verdicts if verdict.problems}
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
        refused=tuple(str(verdict) for verdict in verdicts if verdict.problems),
        arithmetic=arithmetic(),
    )
