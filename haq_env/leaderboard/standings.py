"""Who stands where: scores of verified runs, with intervals.

A score is the test accuracy of the policy that a run had found, mean over the fresh seeds, on a
scale where 0 is the best uniform policy that fits and 1 the best policy that anybody has found on
the track. What a submission claims is not looked at: there is nothing here but `Verified`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from haq_env.errors import InputError
from haq_env.leaderboard.protocol import FEWEST_SEEDS, SEEDS, Cell, Suite, checkpoints, find_track
from haq_env.leaderboard.verified import Scored, Verified, VerifiedRun
from haq_env.report import estimates
from haq_env.report.estimates import Array, Estimate

BASELINE = "random"
OWN = ("baselines", "transfer", "cifar10", "agents", "more")  # this package's own submissions
PACKAGE = "haq-env"  # their owner
LEVELS = (0.5, 0.9)  # scores that runs are expected to reach


@dataclass(frozen=True)
class Anchor:
    """What 0 and 1 mean on a track.

    Attributes:
        track: its name.
        uniform: the best uniform policy that fits.
        best: the policy of the highest test accuracy that is known, the uniform one included.
        by: entries that have found the best one; empty if it is the uniform one.
    """

    track: str
    uniform: Scored
    best: Scored
    by: tuple[str, ...]

    @property
    def gain(self) -> float:
        """Points of test accuracy between 0 and 1."""
        return self.best.score - self.uniform.score

    def score(self, policy: Scored) -> float:
        """Put a policy on the scale."""
        return (policy.score - self.uniform.score) / self.gain


@dataclass(frozen=True)
class Standing:
    """What the runs of one entry say. Estimates are None where it has not run on all tracks.

    Attributes:
        entry: its name.
        submission: title of the submission that it is from.
        tracks: how many tracks it has run on, and how many are scored.
        seeds: the fewest and the most runs on a track.
        at: checkpoint to the IQM of the scores there.
        regret: mean of 1 - score at the last checkpoint.
        over_baseline: probability of a better last score than a run of `BASELINE`; None for
            itself.
        over_leader: likewise, than a run of the entry that leads.
        reach: level to the median over runs of the first checkpoint whose score is at least that;
            infinite if most runs have none.
        charge: median of what is computed before the first evaluation, as declared.
    """

    entry: str
    submission: str
    tracks: tuple[int, int]
    seeds: tuple[int, int]
    at: Mapping[int, Estimate] = field(default_factory=dict)
    regret: Estimate | None = None
    over_baseline: Estimate | None = None
    over_leader: Estimate | None = None
    reach: Mapping[float, float] = field(default_factory=dict)
    charge: float = 0.0


class Standings:
    """All verified runs of one suite on one scale.

    Args:
        submissions: verified numbers, of one suite only, see `haq_env.leaderboard.suites`; their
            order does not count.
        repetitions: of the bootstrap.
        seed: of the bootstrap.

    Attributes:
        suite: what the runs are of.
        anchors: track to what 0 and 1 mean there, for tracks on which something better than
            uniform is known and this package's `BASELINE` has run, where it has run anywhere: one
            run of anybody on a new track would take all places away otherwise.
        unscored: the other tracks, and why.
        main: the checkpoint at which entries are ranked.
        entries: name to its runs, by track and seed. The name is that of the method, with the
            submission's where two submissions have a method of one name.
        rows: the entries from the leader to the last, then those that have not run on all tracks.

    Raises:
        InputError: there is no run, there are runs of two suites, or submissions were verified
            with different arithmetics.
    """

    def __init__(
        self,
        submissions: Sequence[Verified],
        repetitions: int = estimates.REPETITIONS,
        seed: int = 0,
    ) -> None:
        self._draw: dict[str, Any] = {"repetitions": repetitions, "seed": seed}
        _same_arithmetic(submissions)
        self.entries, self._titles, baselines = _entries(submissions)
        if not self.entries:
            raise InputError("there is no verified run.")
        self._baseline = baselines.get(PACKAGE)
        if not any(each.name in OWN for each in submissions):  # a report on runs of somebody's own
            self._baseline = next(iter(baselines.values()), None)
        every = [run for runs in self.entries.values() for run in runs]
        self.suite = _one_suite(every)
        self._seeds: dict[tuple[str, str], set[int]] = {}
        for name, runs in self.entries.items():
            for run in runs:
                self._seeds.setdefault((name, run.cell.track), set()).add(run.cell.seed)
        found = {track: self._anchor(track) for track in sorted({r.cell.track for r in every})}
        self.unscored = {track: why for track in found if (why := self._why_not(found[track]))}
        self.anchors = {track: found[track] for track in found if track not in self.unscored}
        self.rows = self._rows()

    def scores(self, entry: str, count: int) -> list[Array] | None:
        """Return the scores of an entry after so many evaluations: [seeds] of each scored track.

        None if it has not run on all of them with the seeds that a place takes, or one of its runs
        not for so long.
        """
        found = []
        for track, anchor in self.anchors.items():
            own = [run for run in self.entries[entry] if run.cell.track == track]
            # all runs or none: who goes on with lucky seeds only must not gain by it
            if not own or any(count not in checkpoints(r.cell) for r in own):
                return None
            if not self._fair({run.cell.seed for run in own}):
                return None
            found.append(np.array([anchor.score(run.best_after(count)) for run in own]))
        return found or None

    def _fair(self, seeds: set[int]) -> bool:
        """Say whether seeds are the first ones, and enough of them to be nobody's choice."""
        most = max(len(own) for own in self._seeds.values())
        return seeds == set(range(len(seeds))) and len(seeds) >= min(FEWEST_SEEDS, most)

    def _why_not(self, anchor: Anchor) -> str:
        """Say why a track is not scored; empty if it is."""
        if anchor.gain <= 0:
            return "nothing better than uniform is known"
        if self._baseline is None:
            return ""
        ran = self._seeds.get((self._baseline, anchor.track), set())
        return "" if self._fair(ran) else f"{self._baseline} has too few runs there"

    @property
    def left_out(self) -> str:
        """A sentence about the tracks that are not scored; empty if all are."""
        reasons = ", ".join(f"{track} ({why})" for track, why in self.unscored.items())
        return f"Not scored: {reasons}." if reasons else ""

    def counts(self, entry: str) -> list[int]:
        """Return the checkpoints that an entry has reached on all scored tracks."""
        allowed = {c for r in self.entries[entry] for c in checkpoints(r.cell)}
        return sorted(count for count in allowed if self.scores(entry, count) is not None)

    def _anchor(self, track: str) -> Anchor:
        runs = [(n, r) for n, own in self.entries.items() for r in own if r.cell.track == track]
        uniform = runs[0][1].steps[0][1]
        best, by = uniform, set[str]()
        for name, run in runs:
            for count in checkpoints(run.cell):
                policy = run.best_after(count)
                rank = (policy.score, policy.w_bits, policy.a_bits)  # a tie is not left to chance
                if rank > (best.score, best.w_bits, best.a_bits) and policy.score > uniform.score:
                    best, by = policy, set[str]()
                if (policy.w_bits, policy.a_bits) == (best.w_bits, best.a_bits):
                    by.add(name)
        return Anchor(track, uniform, best, () if best is uniform else tuple(sorted(by)))

    def _rows(self) -> list[Standing]:
        counts = {name: self.counts(name) for name in self.entries}
        ranked = [name for name in self.entries if counts[name]]
        self.main = self._main([counts[name] for name in ranked])

        def standing(name: str) -> tuple[float, float, str]:
            last = estimates.iqm(self.scores(name, counts[name][-1]) or [])
            at = self.scores(name, self.main)
            return (math.inf if at is None else -estimates.iqm(at), -last, name)

        ranked.sort(key=standing)
        others = [name for name in self.entries if not counts[name]]
        leader = ranked[0] if ranked else None
        rows = [self._row(name, counts[name], leader) for name in ranked]
        return rows + [self._about(name) for name in sorted(others)]

    def _main(self, reached: Sequence[Sequence[int]]) -> int:
        """Choose where entries are ranked: the last checkpoint that half of them reach.

        The last that anybody reaches would give the first place to whoever runs longest.
        """
        every = sorted({count for counts in reached for count in counts})
        # trials end anywhere; one that is no checkpoint ranks only where there is nothing else
        every = [count for count in every if count in self.suite.checkpoints] or every
        common = [n for n in every if 2 * sum(n in counts for counts in reached) >= len(reached)]
        return max(common or every, default=0)

    def _about(self, entry: str) -> Standing:
        runs = self.entries[entry]
        per_track = [
            sum(run.cell.track == track for run in runs)
            for track in sorted({run.cell.track for run in runs})
        ]
        ran = len({run.cell.track for run in runs} & self.anchors.keys())
        return Standing(
            entry,
            self._titles[entry],
            (ran, len(self.anchors)),
            (min(per_track), max(per_track)),
            charge=float(np.median([run.charge for run in runs])),
        )

    def _row(self, entry: str, counts: Sequence[int], leader: str | None) -> Standing:
        about = self._about(entry)
        scores = {count: self.scores(entry, count) or [] for count in counts}
        last = scores[counts[-1]]
        reach = {}
        for level in LEVELS:
            curves = np.stack([np.concatenate(scores[count]) for count in counts], axis=1)
            firsts = estimates.evaluations_to_reach(curves, level)
            whens = [math.inf if math.isinf(n) else counts[int(n) - 1] for n in firsts]
            reach[level] = float(np.median(whens))
        return Standing(
            entry,
            about.submission,
            about.tracks,
            about.seeds,
            {count: estimates.estimate(found, **self._draw) for count, found in scores.items()},
            estimates.mean_regret(last, [1.0] * len(last), **self._draw),
            self._over(entry, self._baseline, counts),
            self._over(entry, leader, counts),
            reach,
            about.charge,
        )

    def _over(self, entry: str, other: str | None, counts: Sequence[int]) -> Estimate | None:
        """Compare at the last checkpoint that both have reached."""
        if other is None or other == entry:
            return None
        for count in reversed(counts):
            ours, theirs = self.scores(entry, count), self.scores(other, count)
            if ours is not None and theirs is not None:
                return estimates.probability_of_improvement(ours, theirs, **self._draw)
        return None


def _one_suite(runs: Sequence[VerifiedRun]) -> Suite:
    first, *others = dict.fromkeys(find_track(run.cell.track).suite for run in runs)
    if others:
        raise InputError(
            f"runs of the suites {first} and {others[0]} do not rank together: take them apart."
        )
    return first


def _same_arithmetic(submissions: Sequence[Verified]) -> None:
    for one, other in itertools.pairwise(submissions):
        if one.arithmetic != other.arithmetic:
            raise InputError(
                f"{one.name} and {other.name} were verified on machines whose sums have other last "
                "digits, so that their numbers do not compare: verify all of them on one machine."
            )


def _policies(submissions: Sequence[Verified]) -> dict[tuple[str, str, str], Scored]:
    """Give every policy one score, whoever has found it.

    What was verified with one arithmetic agrees to the last digit; test accuracies may be missing
    where no run of a submission needs them.

    Raises:
        InputError: two submissions have other numbers for one policy.
    """
    known: dict[tuple[str, str, str], Scored] = {}
    source: dict[tuple[str, str, str], str] = {}
    for each in sorted(submissions, key=lambda each: each.name):
        for policy in (policy for run in each.runs for _, policy in run.steps):
            first = known.setdefault(_key(policy), policy)
            name = source.setdefault(_key(policy), each.name)
            tests = first.test or policy.test, policy.test or first.test
            if policy.accuracy != first.accuracy or tests[0] != tests[1]:
                raise InputError(
                    f"{name} and {each.name} have other numbers for one policy of {policy.track} "
                    f"(weights {policy.w_bits}): verify both of them again."
                )
            if policy.test and not first.test:
                known[_key(policy)] = policy
    return known


def _key(policy: Scored) -> tuple[str, str, str]:
    return policy.track, policy.w_bits, policy.a_bits


def _entries(
    submissions: Sequence[Verified],
) -> tuple[dict[str, list[VerifiedRun]], dict[str, str], dict[str, str]]:
    """Gather runs by entry, titles of submissions by entry, and `BASELINE`s by owner.

    This package's submissions have one owner: what they have of one method is one entry.
    """
    ordered = sorted(submissions, key=lambda each: each.name)
    known = _policies(submissions)
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
        for run in sorted(each.runs, key=lambda run: (run.cell.track, run.cell.seed)):
            first = source.setdefault((owner, replace(run.cell, evaluations=1)), each.name)
            if first != each.name:
                raise InputError(f"{run.cell} is in {first} and in {each.name}: once is enough.")
            if run.cell.seed not in SEEDS:
                raise InputError(f"{run.cell} is outside the protocol: it is for tuning.")
            method = run.cell.method
            name = method if len(owners[method]) == 1 else f"{method} ({owner})"
            same = tuple((number, known[_key(policy)]) for number, policy in run.steps)
            entries.setdefault(name, []).append(replace(run, steps=same))
            titles.setdefault(name, {})[each.title] = None
            if method == BASELINE:
                baselines[owner] = name
    for runs in entries.values():
        runs.sort(key=lambda run: (run.cell.track, run.cell.seed))
    joined = {name: "; ".join(each) for name, each in titles.items()}
    return dict(sorted(entries.items())), joined, baselines


def _owner(submission: Verified) -> str:
    return PACKAGE if submission.name in OWN else submission.name
