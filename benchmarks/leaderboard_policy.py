"""``benchmarks/leaderboard.py policy``: a published policy as a file for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from leaderboard_verified import read_checked
from rich.console import Console
from tyro.conf import Positional, arg

from haq_env.errors import InputError
from haq_env.leaderboard.best import best_known
from haq_env.leaderboard.entries import gather
from haq_env.leaderboard.protocol import find_track
from haq_env.leaderboard.suites import by_suite


@dataclass(frozen=True)
class ExportPolicy:
    """Write a published policy as policy.json, which haq-env convert turns into other forms."""

    track: Annotated[Positional[str], arg(metavar="TRACK")]
    """Its name."""
    out: Annotated[Path, arg(metavar="FILE")]
    """The file to write."""
    entry: Annotated[str | None, arg(metavar="NAME")] = None
    """Only policies of this entry, as the table names it; of anybody when not given."""
    seed: Annotated[int | None, arg(metavar="INT")] = None
    """Only policies of the run with this seed."""

    def run(self, console: Console) -> int:
        """Write the file."""
        suite = find_track(self.track).suite
        verified = [numbers for _, numbers in read_checked((), console)]
        parts = by_suite(verified)
        if suite not in parts:
            raise InputError(f"nobody has a verified run on {self.track}.")
        found = best_known(gather(parts[suite]).runs, self.track, self.entry, self.seed)
        found.file().save(self.out)
        policy, uniform = found.policy, found.run.steps[0][1]
        console.print(
            f"Written: {self.out}, evaluation {found.evaluation} of {found.run.cell}: test "
            f"accuracy {policy.score:.2f} % (uniform {uniform.score:.2f} %), cost "
            f"{policy.cost_ratio:.3f} of 8 bits",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return 0
