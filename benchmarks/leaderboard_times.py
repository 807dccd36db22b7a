"""What the leaderboard's two everyday commands take: ``run --quick``, and ``verify --check``.

    python benchmarks/leaderboard_times.py [--jobs 2] [--folders ...] [--record]

Both start from nothing: a temporary store, and an empty cache of evaluations. Times of a machine
that does something else meanwhile say little. Exit code 1 if a target is not met, or a command
fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from leaderboard_figures import Figure, load, tell
from leaderboard_folders import submissions

from haq_env.errors import InputError
from haq_env.leaderboard.protocol import SEARCH, find_track
from haq_env.leaderboard.submission import read_submission

SCRIPT = Path(__file__).parent / "leaderboard.py"
QUICK = 3.0  # minutes
VERIFY = 20.0


@dataclass(frozen=True)
class Settings:
    """Time the two commands."""

    jobs: int = 2
    """Processes of both; the targets are for two cores."""
    folders: tuple[Path, ...] = ()
    """Submissions to verify; all of the suite search when not given, which the target is for."""
    skip_verify: bool = False
    """Only the first of the two."""
    record: bool = False
    """Put the figures into benchmarks/results/leaderboard/figures.md."""


def timed(name: str, minutes: float, command: str, *words: str) -> Figure:
    """Run a command of the leaderboard.

    Args:
        name: of the figure.
        minutes: that it may take.
        command: what was called to measure this.
        words: of the leaderboard's command.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(SCRIPT), *words])
    taken = (time.perf_counter() - start) / 60
    measured = f"{taken:.1f} min" + (f", exit code {done.returncode}" if done.returncode else "")
    met = taken < minutes and done.returncode == 0
    return Figure(name, f"under {minutes:g} min on 2 cores", measured, met, command)


def of_the_digits() -> list[Path]:
    """Return the submissions to the suite search, whose images come with the package."""
    return [
        folder
        for folder in submissions(())
        if all(
            find_track(claim.outcome.cell.track).suite is SEARCH
            for claim in read_submission(folder).claims
        )
    ]


def main() -> None:
    """Measure, print and record."""
    settings = tyro.cli(Settings, description=__doc__)
    whole = not (settings.folders or settings.skip_verify)
    if settings.record and not whole:
        raise InputError("only figures of both commands, on the whole suite search, are recorded.")
    command = f"python benchmarks/{Path(__file__).name} --jobs {settings.jobs}"
    jobs = ("--jobs", str(settings.jobs))
    before = load()
    with tempfile.TemporaryDirectory() as scratch:
        quick = ("run", "--quick", "--store", f"{scratch}/store", *jobs)
        figures = [timed("`leaderboard.py run --quick`", QUICK, command, *quick)]
        if not settings.skip_verify:
            folders = map(str, settings.folders or of_the_digits())
            check = ("verify", *folders, "--check", "--cache", f"{scratch}/cache.sqlite", *jobs)
            name = "`leaderboard.py verify --check`, suite `search`, nothing cached"
            figures.append(timed(name, VERIFY, command, *check))
    sys.exit(not tell(figures, before, settings.record))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
