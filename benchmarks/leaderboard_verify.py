"""``benchmarks/leaderboard.py verify``: submissions are executed again."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from leaderboard_folders import Folders, submissions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import FlagCreatePairsOff, arg

from haq_env.data.store import cache_folder
from haq_env.errors import InputError
from haq_env.leaderboard.arithmetic import OTHER, SAME, arithmetic
from haq_env.leaderboard.published import check_published
from haq_env.leaderboard.submission import Submission, read_submission
from haq_env.leaderboard.verified import Verified
from haq_env.leaderboard.verified_file import FILE, read_verified, write_verified
from haq_env.leaderboard.verify import Choice, Verdict, is_lenient, policies_of, verify

MOST_FAILURES = 125  # an exit code is a byte, and shells use those above
CACHE = "verify-{}.sqlite"  # in the folder of data; its arithmetic


@dataclass(frozen=True)
class Verify:
    """Execute submissions again; the exit code is the number of runs that are refused."""

    folders: Folders = ()
    sample: Annotated[int | None, arg(metavar="INT")] = None
    """Execute so many runs of each submission, drawn at random; writes nothing."""
    seed: int | None = None
    """Of the draw; another one each time when not given: who foresees it could forge the rest."""
    check: bool = False
    """Write nothing, and compare with the verified numbers that are there."""
    cache: Path | None = None
    """What has been executed, so that a killed verification goes on where it was; among the
    user's own files when not given, since whoever submits may put files into the working tree."""
    jobs: int = max(1, min(8, os.cpu_count() or 1))
    """Processes."""
    limit: int = 2000
    """Different policies of a submission that are executed at most, two seconds or so of a core
    each: one that has more is not begun."""
    other_arithmetic: Annotated[bool, FlagCreatePairsOff] = False
    """Allow claims that are from another arithmetic than this machine's, or say none, to be off by
    12 points in the place of 0.5."""

    def run(self, console: Console) -> int:
        """Print one line for each run, and write verified.json into each folder."""
        failures, broken = 0, False
        for folder in submissions(self.folders):
            try:
                if self.jobs < 1:
                    raise InputError(f"jobs must be 1 or more, not {self.jobs}.")
                if not folder.exists():
                    raise InputError("there is no such folder.")
                failures += self._verify(folder, console)
            except InputError as error:  # not of the submission: of this machine, or of a flag
                print(f"error: {folder}: {' '.join(str(error).split())}", file=sys.stderr)
                broken = True
        return MOST_FAILURES + 1 if broken else min(failures, MOST_FAILURES)

    @property
    def _read_only(self) -> bool:
        return self.check or self.sample is not None

    def _verify(self, folder: Path, console: Console) -> int:
        """Execute one submission, and return how many of its runs are newly refused."""
        try:
            submission, published = self._read(folder)
        except InputError as error:
            _say(console, f"refused: {folder}: {error}")
            return 1
        choice = self._choice(folder, console)
        count = len(policies_of(choice.of(submission.claims)))
        _say(console, f"{folder}: {count:,} different policies to execute")
        verdicts, found = _execute(submission, choice, published, console)
        failures = _tell(verdicts, published, folder, console)
        _tell_leniency(submission, verdicts, is_lenient(choice, published), console)
        if not self._read_only:
            write_verified(found, folder / FILE)
            _say(console, f"Written: {folder / FILE}")
        return failures

    def _read(self, folder: Path) -> tuple[Submission, Verified | None]:
        """Read a submission, and what is published of it where that is only compared."""
        submission = read_submission(folder)
        if not (self._read_only and (folder / FILE).exists()):
            if self.check:
                raise InputError(f"{folder} has no {FILE} to compare with.")
            return submission, None
        published = read_verified(folder / FILE)
        try:
            check_published(submission, published)
        except InputError as error:
            raise InputError(f"{FILE}: {error}") from error
        return submission, published

    def _choice(self, folder: Path, console: Console) -> Choice:
        """Say which runs are executed, and how."""
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        if self.sample is not None:
            _say(console, f"{folder}: {self.sample} runs, drawn with --seed {seed}")
        own = cache_folder() / CACHE.format(arithmetic())  # another one has other answers
        cache = own if self.cache is None else self.cache
        return Choice(self.sample, seed, cache, self.jobs, self.limit, self.other_arithmetic)


def _execute(
    submission: Submission, choice: Choice, published: Verified | None, console: Console
) -> tuple[list[Verdict], Verified]:
    """Execute the runs that were chosen, with a bar on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("policies", total=None)
        return verify(
            submission,
            choice,
            published=published,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _tell(
    verdicts: Sequence[Verdict], published: Verified | None, folder: Path, console: Console
) -> int:
    """Print a line for each run; return how many are refused that are not published as refused."""
    fine = None if published is None else {run.cell for run in published.runs}
    refused = failures = 0
    for verdict in verdicts:
        wrong = bool(verdict.reasons)
        again = bool(verdict.problems) and fine is not None and verdict.cell not in fine
        _say(console, f"{verdict}{' (as it is published)' if again else ''}")
        refused += wrong
        failures += wrong and not again
    _say(console, f"{folder}: {len(verdicts)} runs executed again, {refused} refused")
    if published is not None and published.arithmetic != arithmetic():
        _say(
            console,
            f"{FILE} is from another arithmetic: measurements were held against it within "
            f"{OTHER.single:g} points, and scores within {OTHER.score:g}",
        )
    return failures


def _tell_leniency(
    submission: Submission, verdicts: Sequence[Verdict], lenient: bool, console: Console
) -> None:
    """Say what was allowed to claims that are from another arithmetic, if there are any."""
    theirs = {c.outcome.cell: c.outcome.arithmetic for c in submission.claims}
    others = [v for v in verdicts if theirs[v.cell] != arithmetic()]
    about = "from another arithmetic, or from one that they do not say"
    if others and lenient:
        _say(
            console,
            f"{len(others)} runs are {about}: their claims were held against {OTHER.single:g} "
            f"points in the place of {SAME.single:g}",
        )
    elif wrong := sum(bool(v.problems) for v in others):
        _say(
            console,
            f"{wrong} refused runs are {about}: --other-arithmetic allows their claims "
            f"{OTHER.single:g} points in the place of {SAME.single:g}",
        )


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
