"""Kill sweeps at random moments, and see whether anything is lost, done again or different.

    python benchmarks/leaderboard_faults.py [--kills 30] [--seed 0] [--record]

Every trial is a sweep of five runs on two worker processes: baselines, an integer program over a
table, and an agent. At a random moment its main process or one of its workers gets SIGKILL; a main
process is then started again. A kill that comes when all runs are done is drawn again. Three things
must hold:

- every evaluation and every run that was finished at that moment is still there in the end, as it
  was;
- none of them is begun again after it: all that is begun and finished is in a log of its own, since
  a store cannot tell what was done twice;
- the runs and the table of the leaderboard that is made from them equal those of a sweep that
  nobody disturbed, less the times. The charge of an integer program is a ratio of two times.

Linux only, since processes are found in /proc. The exit code is the number of trials that failed.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers side by side, a core each

import numpy as np
import tyro
from leaderboard_figures import Figure, load, tell
from leaderboard_log import DONE, KEPT, RUN, VARIABLE, Log, watch
from leaderboard_snapshot import CELLS, CHEAP, LOG, Snapshot, evaluations

from haq_env.leaderboard.engines import start_engine
from haq_env.leaderboard.store import Store
from haq_env.leaderboard.sweep import Event, sweep
from haq_env.options import OptionalPath

if VARIABLE in os.environ:  # a worker process, which begins with this file, too
    watch(Log(Path(os.environ[VARIABLE])))


@dataclass(frozen=True)
class Settings:
    """Kill sweeps, and compare what they leave with an undisturbed one."""

    kills: int = 30
    """Sweeps, each of which is disturbed by one kill."""
    seed: int = 0
    """Of the moments and of whom they hit."""
    record: bool = False
    """Put the figure into benchmarks/results/leaderboard/figures.md."""
    only_sweep: OptionalPath = None
    """Run one undisturbed sweep in this folder and nothing else; prints the runs that it did."""


def start(folder: Path) -> subprocess.Popen[str]:
    """Start a sweep in a process of its own."""
    command = [sys.executable, os.path.abspath(__file__), "--only-sweep", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a sweep that must end well."""
    process.communicate(timeout=600)
    if process.returncode != 0:
        raise AssertionError(f"the sweep ended with exit code {process.returncode}")


def workers(main: int) -> list[int]:
    """List the worker processes of a sweep that live now."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            command = (entry / "cmdline").read_text()
        except OSError:  # it has just ended
            continue
        if parent == str(main) and "spawn_main" in command:
            found.append(int(entry.name))
    return sorted(found)


@dataclass(frozen=True)
class Moment:
    """When a sweep is disturbed, in terms that do not depend on how busy the machine is.

    Attributes:
        evaluations: that are kept by then.
        delay: seconds after that.
    """

    evaluations: int
    delay: float

    @classmethod
    def draw(cls, rng: np.random.Generator, evaluations: int, silence: float) -> Moment:
        """Draw one: a fifth of them before the first of the evaluations, which takes seconds."""
        if rng.random() < 0.2:
            return cls(0, float(rng.uniform(0, silence)))
        return cls(int(rng.integers(1, evaluations)), float(rng.uniform(0, 0.3)))

    def wait(self, folder: Path, process: subprocess.Popen[str]) -> None:
        """Wait for it, or for the end of the sweep."""
        while process.poll() is None and len(evaluations(folder)) < self.evaluations:
            time.sleep(0.02)
        time.sleep(self.delay)


def disturb(folder: Path, moment: Moment, victim: str, rng: np.random.Generator) -> Snapshot | None:
    """Run a sweep to its end with one kill.

    Returns:
        What was there right after the kill; None if the kill came too late to hit anything.
    """
    process = start(folder)
    moment.wait(folder, process)
    while process.poll() is None:
        living = [process.pid] if victim == "main" else workers(process.pid)
        if living:
            os.kill(int(rng.choice(living)), signal.SIGKILL)
            break
        time.sleep(0.05)  # no worker has been started yet
    snapshot = Snapshot.of(folder)
    if victim == "main" and process.wait() == -signal.SIGKILL:
        process = start(folder)  # at once, while the old workers may still be ending
    finish(process)
    return snapshot if len(snapshot.outcomes) < len(CELLS) else None


def undisturbed(folder: Path) -> tuple[Snapshot, float]:
    """Run a sweep that nobody disturbs; return what it leaves, and seconds to the first answer."""
    begin = time.monotonic()
    process = start(folder)
    Moment(1, 0.0).wait(folder, process)
    silence = time.monotonic() - begin
    finish(process)
    return Snapshot.of(folder), silence


def judge(folder: Path, before: Snapshot, reference: Snapshot) -> str:
    """Say what is wrong in the end; empty if nothing."""
    after = Snapshot.of(folder)
    if wrong := before.lost(after) or before.done_again(after):
        return wrong
    if after.outcomes != reference.outcomes:
        return "the runs differ from the undisturbed ones"
    if after.table() != reference.table():
        return "the table differs from the undisturbed one"
    if after.evaluations.keys() != reference.evaluations.keys():
        return "other policies were measured than in the undisturbed sweep"
    return ""


def only_sweep(folder: Path) -> None:
    """Run one sweep, and print the runs that it did."""
    store = Store(folder)
    log = Log(store.folder / LOG)
    os.environ[VARIABLE] = str(log.path)  # for the workers
    engine = start_engine("pool", store.folder, jobs=2)

    def note(event: Event) -> None:
        if event.state == "running":
            log.write(RUN, str(event.cell))
        if event.state == "done":
            log.write(DONE, str(event.cell))
            print(event.cell, flush=True)

    states = sweep(store, CELLS, engine, tracks={CHEAP.name: CHEAP}, tell=note)
    sys.exit(states["done"] != len(CELLS))


def main() -> None:
    """Run the trials."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.only_sweep is not None:
        only_sweep(settings.only_sweep)
    rng, before_all = np.random.default_rng(settings.seed), load()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        reference, silence = undisturbed(Path(scratch) / "undisturbed")
        total = len(reference.evaluations)
        if len({entry for entry in reference.log if entry.what == KEPT}) != total:
            raise SystemExit("error: the log does not have what is in the cache")
        print(reference.table())
        print(f"undisturbed: {total} evaluations, the first after {silence:.1f} s", flush=True)
        attempts = itertools.count()
        for trial in range(settings.kills):
            victim = ("main", "worker")[trial % 2]
            before = None
            try:
                while before is None:  # one that hit nothing does not count
                    folder = Path(scratch) / str(next(attempts))
                    before = disturb(folder, Moment.draw(rng, total, silence), victim, rng)
                wrong = judge(folder, before, reference)
                held = f"{len(before.outcomes)} runs and {len(before.evaluations)} evaluations"
            except AssertionError as error:
                wrong, held = str(error), "?"
            failed += bool(wrong)
            what = f"{victim} killed with {held} finished"
            print(f"{trial + 1:3d} {what}: {wrong or 'nothing lost'}", flush=True)
    figure = Figure(
        "kills of a sweep that leave no trace",
        "all",
        f"{settings.kills - failed} of {settings.kills}",
        failed == 0,
        f"python benchmarks/leaderboard_faults.py --kills {settings.kills}",
    )
    tell([figure], before_all, settings.record)
    sys.exit(min(failed, 255))


if __name__ == "__main__":
    main()
