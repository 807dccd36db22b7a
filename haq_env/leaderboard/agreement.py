"""How well the claims of a submission held: what is told of it besides its verified numbers."""

from __future__ import annotations

from dataclasses import dataclass

from haq_env.leaderboard.arithmetic import OTHER, SAME
from haq_env.leaderboard.submission import Submission
from haq_env.leaderboard.verified import Verified
from haq_env.report.units import DASH

HEAD = ("claims held within (points)", f"claims off by more than {SAME.single:g}")
ABOUT = (
    "Claims: the accuracies inside the search that runs claim, against those that were measured "
    "here, which alone count. "
    f"{OTHER.single:g} points are only granted to claims from a machine that adds in another order."
)


@dataclass(frozen=True)
class Agreement:
    """Claimed accuracies beside measured ones.

    Attributes:
        claims: how many accuracies the runs claim that were not refused.
        off: how many of them are off by more than `SAME` allows.
    """

    claims: int
    off: int

    @property
    def within(self) -> float:
        """Points of top-1 that the claims were allowed: without any that is off, `SAME`."""
        return OTHER.single if self.off else SAME.single


def agreement(submission: Submission, verified: Verified) -> Agreement:
    """Compare the claims of a submission with its verified numbers.

    Args:
        submission: as it was read.
        verified: of this submission, see `haq_env.leaderboard.published.check_published`; may be
            a part of them. Runs that are not in it, such as refused ones, are left out.
    """
    measured = {policy.key: policy.accuracy for policy in verified.policies}
    ran = {run.cell for run in verified.runs}
    errors = [
        abs(measured[claim.outcome.cell.track, step.w_bits, step.a_bits] - step.accuracy)
        for claim in submission.claims
        if claim.outcome.cell in ran
        for step in claim.outcome.steps
    ]
    return Agreement(len(errors), sum(error > SAME.single for error in errors))


def told(found: Agreement | None) -> tuple[str, str]:
    """Write what stands under `HEAD`; dashes where nobody has compared."""
    if found is None:
        return DASH, DASH
    return f"{found.within:g}", f"{found.off} of {found.claims}"
