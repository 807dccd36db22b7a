"""Verified runs as curves, for other tools."""

from __future__ import annotations

import numpy as np

from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.verified import VerifiedRun
from haq_env.report.runs import Run
from haq_env.report.scores import Array


def curves(standings: Standings) -> list[Run]:
    """Return the best held-out accuracy after each evaluation of every verified run.

    They are for `haq_env.report.runs.write_csv`, `haq_env.report.tensorboard.write_tensorboard`
    and the tables and plots of `haq_env.report.comparison`.
    """
    return [
        Run(
            run.cell.track,
            entry,
            run.cell.seed,
            _best_so_far(run),
            run.charge,
            run.seconds,
            run.repeats,
        )
        for entry, runs in standings.entries.items()
        for run in runs
    ]


def _best_so_far(run: VerifiedRun) -> Array:
    starts = [evaluation for evaluation, _ in run.steps]
    values = np.array([policy.accuracy for _, policy in run.steps])
    # on another processor a claimed improvement may have become none
    rising = np.maximum.accumulate(values)
    return np.asarray(np.repeat(rising, np.diff([*starts, run.evaluations + 1])), dtype=np.float64)
