"""What ``benchmarks/leaderboard.py`` does after the runs: submit, verify, report."""

from __future__ import annotations

import math
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import FlagCreatePairsOff, Positional, arg

from haq_env.data.store import cache_folder
from haq_env.errors import InputError
from haq_env.leaderboard.protocol import FEWEST_SEEDS, SEEDS, Outcome, find_track
from haq_env.versions import processor, versions

if TYPE_CHECKING:
    from haq_env.leaderboard.verified import Verified

MOST_FAILURES = 125  # an exit code is a byte, and shells use those above
SUBMISSIONS = Path("benchmarks/submissions")
REPORT = Path("benchmarks/results/leaderboard")
CACHE = "verify.sqlite"  # in the folder of data
PACKAGES = ("haq-env", "torch", "torchvision", "numpy", "stable-baselines3", "sb3-contrib")

Folders = Annotated[
    Positional[tuple[Path, ...]],
    arg(metavar="FOLDER", help=f"Submissions; all in {SUBMISSIONS} when not given."),
]


@dataclass(frozen=True)
class Submit:
    """Gather the policies of finished runs in a folder that others can verify."""

    out: Annotated[Path, arg(metavar="FOLDER")]
    """The folder to write; its name is the submission's."""
    title: str
    """What was submitted, in a few words."""
    authors: tuple[str, ...]
    """Who made it."""
    store: Path = Path("runs/leaderboard")
    """Folder of the runs."""
    tracks: tuple[str, ...] = ()
    """Only these tracks."""
    methods: tuple[str, ...] = ()
    """Only these methods."""
    code: str = ""
    """https address of the code with its commit, if it is not this package."""
    settings: tuple[str, ...] = ()
    """NAME=VALUE for every setting that is not the default."""
    tuned: str = ""
    """What was tried before settings were chosen: ranges, how often, on which tracks."""
    tuning_seeds: tuple[int, ...] = ()
    """Seeds that settings were tuned on, 100 and above."""
    environment_changed: str = ""
    """What was changed in the environments."""
    hardware: str = ""
    """What the runs were made on; this machine when not given."""
    hours: float | None = None
    """Processor hours of all runs together; what the store says when not given."""
    overwrite: Annotated[bool, FlagCreatePairsOff] = False
    """Replace the submission that is in the folder."""

    def run(self, console: Console) -> int:
        """Write the folder."""
        from haq_env.leaderboard.store import Store
        from haq_env.leaderboard.submission import Manifest, write_submission

        pairs = [setting.partition("=") for setting in self.settings]
        wrong = [
            setting for setting, (_, sign, _) in zip(self.settings, pairs, strict=True) if not sign
        ]
        if wrong:
            raise InputError(f"a setting is NAME=VALUE, not {wrong[0]!r}.")
        for track in self.tracks:
            find_track(track)
        if self.hours is not None and not 0 <= self.hours < math.inf:
            raise InputError(f"hours must be 0 or more, not {self.hours}.")
        outcomes = chosen(Store(self.store, create=False).outcomes(), self.tracks, self.methods)
        missing = {*self.methods} - {outcome.cell.method for outcome in outcomes}
        missing |= {*self.tracks} - {outcome.cell.track for outcome in outcomes}
        if missing:
            raise InputError(f"{self.store} has no finished run of {min(missing)!r} to submit.")
        hours = sum(each.wall for each in outcomes) / 3600 if self.hours is None else self.hours
        manifest = Manifest(
            title=self.title,
            authors=self.authors,
            code=self.code,
            settings={name: value for name, _, value in pairs},
            tuned=self.tuned,
            tuning_seeds=self.tuning_seeds,
            environment_changed=self.environment_changed,
            hardware=self.hardware or f"{processor()}, {os.cpu_count()} cores",
            seconds=round(3600 * hours, 1),
            versions=versions(*PACKAGES),
        )
        submission = write_submission(self.out, manifest, outcomes, overwrite=self.overwrite)
        console.print(f"Written: {self.out}, {len(submission.claims)} runs.", highlight=False)
        for line in holes(outcomes):
            console.print(line, highlight=False, markup=False)
        return 0


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

    def run(self, console: Console) -> int:
        """Print one line for each run, and write verified.json into each folder."""
        failures, broken = 0, False
        for folder in submissions(self.folders):
            try:
                if self.jobs < 1:
                    raise InputError(f"jobs must be 1 or more, not {self.jobs}.")
                failures += self._one(folder, console)
            except InputError as error:  # not of the submission: of this machine, or of a flag
                print(f"error: {folder}: {' '.join(str(error).split())}", file=sys.stderr)
                broken = True
        return MOST_FAILURES + 1 if broken else min(failures, MOST_FAILURES)

    def _one(self, folder: Path, console: Console) -> int:
        from haq_env.leaderboard.arithmetic import OTHER, arithmetic
        from haq_env.leaderboard.published import check_published
        from haq_env.leaderboard.submission import read_submission
        from haq_env.leaderboard.verified import FILE, Verified
        from haq_env.leaderboard.verify import Choice, verify

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        read_only = self.check or self.sample is not None
        published = None
        try:
            submission = read_submission(folder)
            if read_only and (folder / FILE).exists():
                published = Verified.load(folder / FILE)
                try:
                    check_published(submission, published)
                except InputError as error:
                    raise InputError(f"{FILE}: {error}") from error
            elif self.check:
                raise InputError(f"{folder} has no {FILE} to compare with.")
        except InputError as error:
            say(f"refused: {folder}: {error}")
            return 1
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        if self.sample is not None:
            say(f"{folder}: {self.sample} runs, drawn with --seed {seed}")
        cache = cache_folder() / CACHE if self.cache is None else self.cache
        choice = Choice(self.sample, seed, cache, self.jobs)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        ) as bar:
            task = bar.add_task("policies", total=None)
            verdicts, found = verify(
                submission,
                choice,
                published=published,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        fine = None if published is None else {run.cell for run in published.runs}
        refused = failures = 0
        for verdict in verdicts:
            wrong = bool(verdict.reasons)
            again = bool(verdict.problems) and fine is not None and verdict.cell not in fine
            say(f"{verdict}{' (as it is published)' if again else ''}")
            refused += wrong
            failures += wrong and not again
        say(f"{folder}: {len(verdicts)} runs executed again, {refused} refused")
        if published is not None and published.arithmetic != arithmetic():
            say(
                f"{FILE} is from another arithmetic: measurements were held against it within "
                f"{OTHER.single:g} points, and scores within {OTHER.score:g}"
            )
        if not read_only:
            found.save(folder / FILE)
            say(f"Written: {folder / FILE}")
        return failures


@dataclass(frozen=True)
class Report:
    """Make the table, the page and the curves of each suite from verified numbers."""

    folders: Folders = ()
    out: Path = REPORT
    """Folder of README.md, index.html and curves.csv; those of the suites transfer and cifar10
    are in folders of their names."""
    tensorboard: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Also write the curves for TensorBoard."""

    def run(self, console: Console) -> int:
        """Write the files."""
        from haq_env.files import replace_file, writing
        from haq_env.leaderboard.curves import curves
        from haq_env.leaderboard.page import page
        from haq_env.leaderboard.protocol import SUITES
        from haq_env.leaderboard.standings import Standings
        from haq_env.leaderboard.suites import by_suite
        from haq_env.leaderboard.table import markdown
        from haq_env.report.runs import write_csv

        parts = by_suite(self._verified(console))
        if not parts:
            raise InputError("there is no verified run.")
        for suite in SUITES.values():
            stale = self.out / suite.folder / "README.md"
            if suite not in parts and stale.exists():
                raise InputError(f"{stale} is a table that no verified run is for: remove it.")
        runs, texts = {}, {}
        for suite, part in parts.items():
            standings, folder = Standings(part), self.out / suite.folder
            others = [other for other in parts if other != suite]
            runs[folder] = curves(standings)
            texts[folder / "README.md"] = markdown(part, standings, others)
            texts[folder / "index.html"] = page(part, standings, others)
        files = []
        if self.tensorboard is not None:  # first, because it can be missing
            from haq_env.report.tensorboard import write_tensorboard

            every = [run for part_runs in runs.values() for run in part_runs]
            files.append(write_tensorboard(every, self.tensorboard))
        for folder in runs:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            replace_file(path, text)
            files.append(path)
        files += [write_csv(found, folder / "curves.csv") for folder, found in runs.items()]
        for file in files:
            console.print(f"Written: {file}", highlight=False, markup=False)
        return 0

    def _verified(self, console: Console) -> list[Verified]:
        """Read verified numbers that are of the submissions as they stand."""
        from haq_env.leaderboard.published import check_published
        from haq_env.leaderboard.submission import read_submission
        from haq_env.leaderboard.verified import FILE, Verified, load_all

        folders = []
        for folder in submissions(self.folders):
            if (folder / FILE).exists():
                folders.append(folder)
            elif self.folders:
                raise InputError(f"{folder} has no {FILE}: verify it first.")
            else:
                console.print(f"left out: {folder}, which nobody has verified", highlight=False)
        found = load_all(folders)
        for folder in folders:
            try:
                check_published(read_submission(folder), Verified.load(folder / FILE))
            except InputError as error:
                raise InputError(f"{folder}: {error}") from error
        return found


def chosen(
    outcomes: Sequence[Outcome], tracks: Sequence[str], methods: Sequence[str]
) -> list[Outcome]:
    """Choose what is submitted: published seeds, and of several lengths of a run the longest."""
    best: dict[tuple[str, str, int], Outcome] = {}
    for outcome in outcomes:
        cell = outcome.cell
        if cell.seed not in SEEDS or (tracks and cell.track not in tracks):
            continue
        if methods and cell.method not in methods:
            continue
        key = (cell.track, cell.method, cell.seed)
        if key not in best or best[key].cell.evaluations < cell.evaluations:
            best[key] = outcome
    return [best[key] for key in sorted(best)]


def holes(outcomes: Sequence[Outcome]) -> list[str]:
    """Say which entries would get no place for their seeds, a line for each."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        seeds.setdefault((cell.track, cell.method), set()).add(cell.seed)
    lines = []
    for (track, method), own in sorted(seeds.items()):
        missing = sorted({*range(max(FEWEST_SEEDS, max(own) + 1))} - own)
        if missing:
            numbers = ", ".join(map(str, missing))
            lines.append(f"{track}, {method}: no place without seeds {numbers}")
    return lines


def submissions(folders: Sequence[Path]) -> list[Path]:
    """Return the folders that were named, or all there are.

    Raises:
        InputError: there is none.
    """
    found = list(folders) or sorted(path for path in SUBMISSIONS.glob("[!.]*") if path.is_dir())
    if not found:
        raise InputError(f"there is no submission in {SUBMISSIONS}: name a folder.")
    return found
