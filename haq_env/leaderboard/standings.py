"""Who stands where: scores of verified runs, with intervals.

A score is the test accuracy of the policy that a run had found, mean over the fresh seeds, on a
scale where 0 is the best uniform policy that fits and 1 the best policy that anybody has found on
the track. What a submission claims is not looked at: there is nothing here but `Verified`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haq_env.leaderboard.entries import gather
from haq_env.leaderboard.protocol import FEWEST_SEEDS, checkpoints
from haq_env.leaderboard.verified import Scored, Verified
from haq_env.report.bootstrap import REPETITIONS
from haq_env.report.estimates import (
    Estimate,
    estimate,
    mean_regret,
    probability_of_improvement,
)
from haq_env.report.scores import Array, evaluations_to_reach, iqm

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

    What compares entries is of the checkpoint at which they are ranked, and None for those that do
    not reach it: each at the end of its own runs would make longer runs look better.

    Attributes:
        entry: its name.
        submission: title of the submission that it is from.
        tracks: how many tracks it has run on, and how many are scored.
        seeds: the fewest and the most runs on a track.
        at: checkpoint to the IQM of the scores there.
        regret: mean of 1 - score.
        over_baseline: probability of a better score than a run of `BASELINE`; None for itself.
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
        repetitions: int = REPETITIONS,
        seed: int = 0,
    ) -> None:
        self._draw: dict[str, Any] = {"repetitions": repetitions, "seed": seed}
        gathered = gather(submissions)
        self.entries, self.suite = gathered.runs, gathered.suite
        self._titles, self._baseline = gathered.titles, gathered.baseline
        every = [run for runs in self.entries.values() for run in runs]
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
            last = iqm(self.scores(name, counts[name][-1]) or [])
            at = self.scores(name, self.main)
            return (math.inf if at is None else -iqm(at), -last, name)

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
        ranked = scores.get(self.main)
        reach = {}
        for level in LEVELS:
            curves = np.stack([np.concatenate(scores[count]) for count in counts], axis=1)
            firsts = evaluations_to_reach(curves, level)
            whens = [math.inf if math.isinf(n) else counts[int(n) - 1] for n in firsts]
            reach[level] = float(np.median(whens))
        return Standing(
            entry,
            about.submission,
            about.tracks,
            about.seeds,
            {count: estimate(found, **self._draw) for count, found in scores.items()},
            None if ranked is None else mean_regret(ranked, [1.0] * len(ranked), **self._draw),
            self._over(entry, self._baseline),
            self._over(entry, leader),
            reach,
            about.charge,
        )

    def _over(self, entry: str, other: str | None) -> Estimate | None:
        """Compare where entries are ranked."""
        if other is None or other == entry:
            return None
        ours, theirs = self.scores(entry, self.main), self.scores(other, self.main)
        if ours is None or theirs is None:
            return None
        return probability_of_improvement(ours, theirs, **self._draw)
