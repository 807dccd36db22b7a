"""Verified numbers taken apart by suite, and how the tables of suites find each other.

What does not rank together is not put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from haq_env.leaderboard.protocol import SUITES, TRACKS, Suite
from haq_env.leaderboard.verified import Verified


def by_suite(submissions: Sequence[Verified]) -> dict[Suite, list[Verified]]:
    """Return what submissions have of each suite, for suites in which there is a run.

    A submission is in each suite that it has runs of, those that were refused included.
    """
    found: dict[Suite, list[Verified]] = {}
    for suite in SUITES.values():
        parts = [_part(each, suite) for each in submissions]
        if any(part.runs for part in parts):
            found[suite] = [part for part in parts if part.runs or part.refused]
    return found


def way(suite: Suite, other: Suite) -> str:
    """Return the way from a suite's folder to another one's: empty or with a slash at its end."""
    return ("../" if suite.folder else "") + (f"{other.folder}/" if other.folder else "")


def _part(submission: Verified, suite: Suite) -> Verified:
    ours = [name for name, track in TRACKS.items() if track.suite == suite]
    return replace(
        submission,
        policies=tuple(each for each in submission.policies if each.track in ours),
        runs=tuple(run for run in submission.runs if run.cell.track in ours),
        # a line begins with its run, as text
        refused=tuple(
            line
            for line in submission.refused
            if any(f" on {track}, seed " in line.partition(";")[0] for track in ours)
        ),
    )
