"""``benchmarks/leaderboard.py submit``: finished runs become a submission."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, arg

from haq_env.errors import InputError
from haq_env.leaderboard.protocol import FEWEST_SEEDS, SEEDS, Outcome, find_track
from haq_env.leaderboard.store import Store
from haq_env.leaderboard.submission import Manifest, write_submission
from haq_env.versions import commit, processor, versions

PACKAGES = ("haq-env", "torch", "torchvision", "numpy", "stable-baselines3", "sb3-contrib")


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
    seeds: tuple[int, ...] = ()
    """Only these seeds."""
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
        pairs = [setting.partition("=") for setting in self.settings]
        wrong = [
            setting for setting, (_, sign, _) in zip(self.settings, pairs, strict=True) if not sign
        ]
        if wrong:
            raise InputError(f"a setting is NAME=VALUE, not {wrong[0]!r}.")
        for track in self.tracks:
            find_track(track)
        outside = [seed for seed in self.seeds if seed not in SEEDS]
        if outside:
            raise InputError(
                f"seed {outside[0]} is not published: runs that are have seeds {SEEDS[0]} to "
                f"{SEEDS[-1]}."
            )
        if self.hours is not None and not 0 <= self.hours < math.inf:
            raise InputError(f"hours must be 0 or more, not {self.hours}.")
        found = Store(self.store, create=False).outcomes()
        outcomes = chosen(found, self.tracks, self.methods, self.seeds)
        missing = {*self.methods} - {outcome.cell.method for outcome in outcomes}
        missing |= {*self.tracks} - {outcome.cell.track for outcome in outcomes}
        missing |= {f"seed {n}" for n in {*self.seeds} - {each.cell.seed for each in outcomes}}
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
            commit=commit(),
        )
        submission = write_submission(self.out, manifest, outcomes, overwrite=self.overwrite)
        console.print(f"Written: {self.out}, {len(submission.claims)} runs.", highlight=False)
        for line in holes(outcomes):
            console.print(line, highlight=False, markup=False)
        return 0


def chosen(
    outcomes: Sequence[Outcome],
    tracks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int] = (),
) -> list[Outcome]:
    """Choose what is submitted: published seeds, and of several lengths of a run the longest."""
    best: dict[tuple[str, str, int], Outcome] = {}
    for outcome in outcomes:
        cell = outcome.cell
        if cell.seed not in SEEDS or (tracks and cell.track not in tracks):
            continue
        if (methods and cell.method not in methods) or (seeds and cell.seed not in seeds):
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
            lines.append(f"{track}, {method}: no place without seeds {numbers}, here or elsewhere")
    return lines
