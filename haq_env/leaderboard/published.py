"""Verified numbers that are published: of the submission as it stands, and coming out again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Set
from dataclasses import replace

from haq_env.errors import InputError
from haq_env.leaderboard.arithmetic import EXACT, OTHER, arithmetic
from haq_env.leaderboard.claims import COST_TOLERANCE, wrong_at_once
from haq_env.leaderboard.protocol import Cell, Outcome, find_track
from haq_env.leaderboard.submission import Submission
from haq_env.leaderboard.verified import Key, Scored, Verified, VerifiedRun
from haq_env.policy import from_digits
from haq_env.task import Task


def check_published(submission: Submission, published: Verified) -> None:
    """See that verified numbers are of a submission as it stands; nothing is executed.

    Whoever writes a submission may write this file too. Every submitted run must be in it or be
    refused in it, what it says of runs must be what was submitted, policies must be allowed, and
    costs must be theirs; only the accuracies are then left to be executed.

    Raises:
        InputError: they are of another submission, a run in them is not the submitted one, or a
            cost is wrong.
    """
    _check_origin(submission, published)
    _check_runs(submission, published)
    _check_complete(submission, published)
    _check_allowed(submission, published)


def _check_origin(submission: Submission, published: Verified) -> None:
    """See that these are the files that were executed, and that the same is said of them."""
    about = submission.manifest
    if published.digests != submission.digests:
        raise InputError("it was made from other files than those beside it: verify them again.")
    theirs = (published.name, published.title, published.authors, published.code)
    told = (published.environment_changed, published.hardware, published.seconds)
    if theirs != (submission.name, about.title, about.authors, about.code) or (
        told != (about.environment_changed, about.hardware, about.seconds)
    ):
        raise InputError("it names another submission: verify it again.")


def _check_runs(submission: Submission, published: Verified) -> None:
    """See that every run is as it was submitted, and that policies are those of the runs."""
    claimed = {claim.outcome.cell: claim.outcome for claim in submission.claims}
    scored = {policy.key for run in published.runs for policy in run.scored}
    for run in published.runs:
        outcome = claimed.get(run.cell)
        if outcome is None or not _is_claimed(run, outcome) or not _is_scored(run, scored):
            raise InputError(f"{run.cell} is not what was submitted: verify it again.")
    if {*published.policies} != {policy for run in published.runs for _, policy in run.steps}:
        raise InputError("it has policies that no run has: verify it again.")


def _is_claimed(run: VerifiedRun, outcome: Outcome) -> bool:
    """Say whether a run has the policies and the declared numbers of an outcome."""
    theirs = (run.evaluations, run.charge, run.repeats, run.seconds)
    declared = (outcome.evaluations, outcome.charge, outcome.repeats, outcome.seconds)
    policies = [(number, each.w_bits, each.a_bits) for number, each in run.steps]
    steps = [(step.evaluation, step.w_bits, step.a_bits) for step in outcome.steps]
    return theirs == declared and policies == steps


def _is_scored(run: VerifiedRun, scored: Set[Key]) -> bool:
    """Say whether exactly those policies of a run have a score that some run needs.

    Another score would be compared with nothing.
    """
    return all(bool(policy.test) == (policy.key in scored) for _, policy in run.steps)


def _check_complete(submission: Submission, published: Verified) -> None:
    """See that every submitted run is either there or refused."""
    claimed = {claim.outcome.cell for claim in submission.claims}
    ran = {run.cell for run in published.runs}
    refused = [
        cell
        for line in published.refused
        for cell in claimed
        if line.startswith(f"refused: {cell};")
    ]
    each_once = len(ran) + len(refused) == len(claimed) and ran.union(refused) == claimed
    if len(refused) != len(published.refused) or not each_once:
        raise InputError("a submitted run is neither in it nor refused, or both: verify it again.")


def _check_allowed(submission: Submission, published: Verified) -> None:
    """See that policies may stand on their tracks, and cost what is said."""
    tracks = sorted({claim.outcome.cell.track for claim in submission.claims})
    tasks = {track: find_track(track).task() for track in tracks}
    ran = {run.cell for run in published.runs}
    for claim in submission.claims:
        cell = claim.outcome.cell
        if cell in ran and (problems := wrong_at_once(claim, tasks[cell.track])):
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


def differences(runs: Iterable[VerifiedRun], published: Verified) -> dict[Cell, list[str]]:
    """Find published numbers of runs that do not come out again.

    On the arithmetic that they are from they do to the last digit, and test accuracies that only
    one side has are a difference.

    Args:
        runs: as they were executed just now, with the test accuracies that are published.
        published: what they are held against.
    """
    known = {policy.key: policy for policy in published.policies}
    there = {run.cell for run in published.runs}
    allowed = EXACT if published.arithmetic == arithmetic() else OTHER
    found: dict[Cell, list[str]] = {}
    for run in runs:
        reasons = found.setdefault(run.cell, [])
        if run.cell not in there:
            if allowed is EXACT:  # a claim that is off there may be within what others allow
                reasons.append("it is published as refused, and nothing is wrong with it")
            continue
        for evaluation, ours in run.steps:
            theirs = known.get(ours.key)
            if theirs is None:
                reasons.append(f"the policy of evaluation {evaluation} is not published")
                continue
            if allowed is OTHER and not theirs.test:
                ours = replace(ours, test=())  # another one was the best at a checkpoint there
            if not ours.agrees(theirs, allowed):
                reasons.append(
                    f"the published numbers of evaluation {evaluation}'s policy do not come out "
                    "again"
                )
    return found
