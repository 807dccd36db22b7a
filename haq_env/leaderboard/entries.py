"""What stands in a table: the verified runs of a method, as one entry for each owner.

A policy has one score, whoever has found it, and only what was verified alike stands together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from haq_env.errors import InputError
from haq_env.leaderboard.protocol import SEEDS, Cell, Suite, find_track
from haq_env.leaderboard.verified import Key, Scored, Verified, VerifiedRun

BASELINE = "random"
# this package's own submissions
OWN = (
    "baselines",
    "transfer",
    "cifar10",
    "agents",
    "more",
    "law",
    "seeds",
    "more-seeds",
    "last-seeds",
    "residual",
)
PACKAGE = "haq-env"  # their owner


@dataclass(frozen=True)
class Entries:
    """The entries of one suite.

    Attributes:
        runs: name to its runs, by track and seed. The name is that of the method, with the
            owner's where two owners have a method of one name.
        titles: name to the titles of the submissions that it is from.
        baseline: the entry of `BASELINE` that tracks are scored by: this package's, or anybody's
            where nothing is from this package; None if there is none.
        suite: what all runs are of.
    """

    runs: Mapping[str, Sequence[VerifiedRun]]
    titles: Mapping[str, str]
    baseline: str | None
    suite: Suite


def gather(submissions: Sequence[Verified]) -> Entries:
    """Gather runs by entry.

    This package's submissions have one owner: what they have of one method is one entry.

    Args:
        submissions: verified numbers; their order does not count.

    Raises:
        InputError: there is no run, there are runs of two suites, submissions were verified with
            different arithmetics or have other numbers for one policy, or a run is there twice or
            for tuning.
    """
    _check_arithmetic(submissions)
    ordered = sorted(submissions, key=lambda each: each.name)
    known = _policies(ordered)
    owners: dict[str, dict[str, None]] = {}
    for each in ordered:
        for method in sorted({run.cell.method for run in each.runs}):
            owners.setdefault(method, {})[_owner(each)] = None
    entries: dict[str, list[VerifiedRun]] = {}
    titles: dict[str, dict[str, None]] = {}
    baselines: dict[str, str] = {}
    source: dict[tuple[str, Cell], str] = {}
    for each in ordered:
        owner = _owner(each)
        for run in sorted(each.runs, key=_place):
            first = source.setdefault((owner, replace(run.cell, evaluations=1)), each.name)
            if first != each.name:
                raise InputError(f"{run.cell} is in {first} and in {each.name}: once is enough.")
            if run.cell.seed not in SEEDS:
                raise InputError(f"{run.cell} is outside the protocol: it is for tuning.")
            method = run.cell.method
            name = method if len(owners[method]) == 1 else f"{method} ({owner})"
            same = tuple((number, known[policy.key]) for number, policy in run.steps)
            entries.setdefault(name, []).append(replace(run, steps=same))
            titles.setdefault(name, {})[each.title] = None
            if method == BASELINE:
                baselines[owner] = name
    if not entries:
        raise InputError("there is no verified run.")
    baseline = baselines.get(PACKAGE)
    if not any(each.name in OWN for each in submissions):  # a report on runs of somebody's own
        baseline = next(iter(baselines.values()), None)
    return Entries(
        {name: sorted(entries[name], key=_place) for name in sorted(entries)},
        {name: "; ".join(each) for name, each in titles.items()},
        baseline,
        _one_suite(run for runs in entries.values() for run in runs),
    )


def _place(run: VerifiedRun) -> tuple[str, int]:
    return run.cell.track, run.cell.seed


def _owner(submission: Verified) -> str:
    return PACKAGE if submission.name in OWN else submission.name


def _one_suite(runs: Iterable[VerifiedRun]) -> Suite:
    first, *others = dict.fromkeys(find_track(run.cell.track).suite for run in runs)
    if others:
        raise InputError(
            f"runs of the suites {first} and {others[0]} do not rank together: take them apart."
        )
    return first


def _check_arithmetic(submissions: Sequence[Verified]) -> None:
    for one, other in itertools.pairwise(submissions):
        if one.arithmetic != other.arithmetic:
            raise InputError(
                f"{one.name} and {other.name} were verified on machines whose sums have other last "
                "digits, so that their numbers do not compare: verify all of them on one machine."
            )


def _policies(submissions: Sequence[Verified]) -> dict[Key, Scored]:
    """Give every policy one score, whoever has found it.

    What was verified with one arithmetic agrees to the last digit; test accuracies may be missing
    where no run of a submission needs them.
    """
    known: dict[Key, Scored] = {}
    source: dict[Key, str] = {}
    for each in submissions:
        for policy in (policy for run in each.runs for _, policy in run.steps):
            first = known.setdefault(policy.key, policy)
            name = source.setdefault(policy.key, each.name)
            tests = first.test or policy.test, policy.test or first.test
            if policy.accuracy != first.accuracy or tests[0] != tests[1]:
                raise InputError(
                    f"{name} and {each.name} have other numbers for one policy of {policy.track} "
                    f"(weights {policy.w_bits}): verify both of them again."
                )
            if policy.test and not first.test:
                known[policy.key] = policy
    return known
