"""The best policy that is known: of a track, of an entry there, or of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from haq_env.errors import InputError, unknown_name
from haq_env.leaderboard.protocol import VERSION, find_track
from haq_env.leaderboard.verified import Scored, VerifiedRun
from haq_env.policy import Policy, from_digits


class Found(NamedTuple):
    """A policy, and who has found it.

    Attributes:
        policy: with its verified numbers.
        entry: name in the table.
        run: the run that had it after the fewest evaluations.
    """

    policy: Scored
    entry: str
    run: VerifiedRun

    @property
    def evaluation(self) -> int:
        """Which evaluation of the run found it, from 1."""
        return next(n for n, each in self.run.steps if each.key == self.policy.key)

    def file(self) -> Policy:
        """Return it as a policy file has it: layers, the track's settings, costs, accuracies."""
        uniform = self.run.steps[0][1]
        where = {
            "protocol": VERSION,
            "track": self.policy.track,
            "entry": self.entry,
            "seed": self.run.cell.seed,
            "evaluation": self.evaluation,
            "test": list(self.policy.test),
            "uniform_test": list(uniform.test),
        }
        return (
            find_track(self.policy.track)
            .task()
            .policy(
                from_digits(self.policy.w_bits, self.policy.a_bits),
                accuracy={"search": self.policy.accuracy, "uniform_search": uniform.accuracy},
                algorithm=self.run.cell.method,
                evaluations=self.run.evaluations,
                leaderboard=where,
            )
        )


def best_known(
    entries: Mapping[str, Sequence[VerifiedRun]],
    track: str,
    entry: str | None = None,
    seed: int | None = None,
) -> Found:
    """Find the policy of the highest test accuracy among those that have one.

    These are the uniform policy and those that runs had at their checkpoints. A tie is decided as
    in the table: by the bits, and for the uniform policy.

    Args:
        entries: name to verified runs, see `haq_env.leaderboard.entries.gather`.
        track: its name.
        entry: only its runs; all when None.
        seed: only runs with it; all when None.

    Raises:
        InputError: there is no such track, entry or run.
    """
    find_track(track)
    there = {
        name: own
        for name, runs in entries.items()
        if (own := [run for run in runs if run.cell.track == track])
    }
    if not there:
        raise InputError(f"nobody has a verified run on {track}.")
    if entry is not None and entry not in there:
        raise unknown_name(f"entry on {track}", entry, there)
    runs = [
        (name, run)
        for name, own in there.items()
        for run in own
        if entry in (None, name) and seed in (None, run.cell.seed)
    ]
    if not runs:
        who = "nobody has a" if entry is None else f"{entry} has no"
        raise InputError(f"{who} verified run on {track} with seed {seed}.")
    every = [Found(policy, name, run) for name, run in runs for policy in run.scored]
    uniform = runs[0][1].steps[0][1].key

    def rank(found: Found) -> tuple[float, bool, str, str, int]:
        policy = found.policy
        place = (policy.score, policy.key == uniform, policy.w_bits, policy.a_bits)
        return (*place, -found.evaluation)

    return max(every, key=rank)
