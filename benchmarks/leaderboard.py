"""The leaderboard: run methods, submit what they found, verify submissions, publish the table.

    python benchmarks/leaderboard.py run [--quick] [--suite search|transfer|cifar10] [--tracks ...]
        [--methods ...] [--seeds ...]
    python benchmarks/leaderboard.py submit|verify|report|policy ...

The protocol, and the commands that made the published table, are in benchmarks/LEADERBOARD.md.
Exit codes of run: 0, 1 if a run has failed for good, 2 for input that cannot be used (with one line
that says why), 130 after Ctrl-C. Of verify: the number of runs that are refused, 125 at most, and
126 if a submission could not be executed at all.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from haq_env.summation import pinned

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers side by side, a core each
os.environ |= pinned()  # likewise: numbers are those of other machines to the last digit

import tyro
from leaderboard_policy import ExportPolicy
from leaderboard_report import Report
from leaderboard_submit import Submit
from leaderboard_verify import Verify
from rich.console import Console
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes
from tyro.extras import subcommand_cli_from_dict

from haq_env.agents.methods import RESIDUAL, TRANSFER, methods
from haq_env.errors import InputError, unknown_name
from haq_env.leaderboard.engines import ENGINES, Engine, start_engine
from haq_env.leaderboard.progress import Bar
from haq_env.leaderboard.protocol import SEEDS, SUITES, TRACKS, Cell, find_track
from haq_env.leaderboard.store import Store
from haq_env.leaderboard.sweep import cells_of, sweep
from haq_env.malloc import keep_freed_memory

INTERRUPTED = 130  # 128 + the signal's number
ENTRIES = tuple(
    name for name in methods() if name == "residual-ppo" or not name.startswith(RESIDUAL)
)
TRANSFERRED = tuple(
    name
    for name in methods(transfer=True)
    if name.startswith(TRANSFER) and name.removeprefix(TRANSFER) in ENTRIES
)  # with a source to learn on


class Command(Protocol):
    """A subcommand."""

    def run(self, console: Console) -> int:
        """Do it, and return the exit code; raises InputError for what the user gave wrong."""
        ...


# -- run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Run methods on tracks, on this machine or on a cluster; go on where a killed sweep was."""

    suite: str = "search"
    """Whose tracks are run when none is named: search, transfer or cifar10."""
    tracks: tuple[str, ...] = ()
    """Names of tracks; all of the suite when not given."""
    methods: tuple[str, ...] = ()
    """Names of methods; all baselines and agents, and one that corrects a table, when not given;
    where there is a source to learn on, those that do so too."""
    seeds: tuple[int, ...] = ()
    """0 to 9 for publishing, 100 and above for tuning; 0 to 9 when not given."""
    evaluations: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Policies that each run may measure, the uniform one included; when not given as many as
    the last checkpoint of the track's suite (400, transfer 50, cifar10 200)."""
    engine: str = "pool"
    """inprocess, pool or ray."""
    jobs: int = max(1, min(8, os.cpu_count() or 1))
    """Processes of the pool."""
    address: str = "auto"
    """Ray cluster: HOST:PORT, or auto for the one that this machine belongs to."""
    store: Path = Path("runs/leaderboard")
    """Folder of the runs and of their evaluations, on a local disk."""
    minutes: float = float("inf")
    """Begin no run after so many minutes."""
    retry: bool = False
    """Give runs that have failed their attempts back."""
    quick: bool = False
    """Three methods, two seeds, the suite's first track, 30 evaluations: does everything work
    here?"""

    def cells(self) -> list[Cell]:
        """List the runs that were asked for; raises InputError for an unknown name or seed."""
        quick = self.quick
        if self.suite not in SUITES:
            raise unknown_name("suite", self.suite, SUITES)
        suite = tuple(name for name, track in TRACKS.items() if track.suite.name == self.suite)
        tracks = self.tracks or (suite[:1] if quick else suite)
        learning = all(find_track(name).source is not None for name in tracks)
        entries = (*ENTRIES, *TRANSFERRED) if learning else ENTRIES
        return cells_of(
            tracks,
            self.methods or (("random", "evolution", "residual-ppo") if quick else entries),
            self.seeds or (SEEDS[:2] if quick else SEEDS),
            30 if quick and self.evaluations is None else self.evaluations,
        )

    def run(self, console: Console) -> int:
        """Run what is missing."""
        cells = self.cells()
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        if not self.minutes >= 0:
            raise InputError(f"minutes must be 0 or more, not {self.minutes:g}.")
        folder = (self.store / "quick" if self.quick else self.store).absolute()
        # before the store: a cluster that does not answer leaves no file behind
        engine = start_engine(self.engine, folder, jobs=self.jobs, address=self.address)
        try:
            return self._sweep(Store(folder), cells, engine, console)
        finally:
            engine.close()

    def _sweep(self, store: Store, cells: Sequence[Cell], engine: Engine, console: Console) -> int:
        """Run what is missing in a store, and say what has failed."""
        if self.retry:
            console.print(f"{store.retry(cells)} failed runs are tried again")
        store.add(cells)
        ended = {row.cell for row in store.rows() if row.state in ("done", "failed")}
        todo = [cell for cell in cells if cell not in ended]
        console.print(f"{len(cells)} runs, {len(cells) - len(todo)} of them ended before")
        with Bar(console, len(cells), todo) as bar:
            states = sweep(store, cells, engine, minutes=self.minutes, tell=bar.tell)
        console.print(", ".join(f"{count} {state}" for state, count in states.items()))
        wanted = set(cells)
        for row in store.rows():
            if row.state == "failed" and row.cell in wanted:
                error = (row.error.splitlines() or ["no reason was given"])[-1]
                line = f"FAILED {row.cell}, {row.attempts} attempts (--retry tries again): {error}"
                console.print(line, markup=False, soft_wrap=True)
        return int(states["failed"] > 0)


# -- all of them -------------------------------------------------------------------------------

# One line for each command.
COMMANDS: dict[str, Callable[..., Command]] = {
    "run": Run,
    "submit": Submit,
    "verify": Verify,
    "report": Report,
    "policy": ExportPolicy,
}


def parse(argv: list[str] | None = None) -> Command:
    """Read a command line, and do nothing yet.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Raises:
        SystemExit: it is no command of this script (2), or asked for help (0).
    """
    command: Command = subcommand_cli_from_dict(
        COMMANDS,
        description=__doc__,
        args=argv,
        config=(OmitArgPrefixes, FlagCreatePairsOff),
    )
    return command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Raises:
        SystemExit: always, with the code that the module's text explains.
    """
    keep_freed_memory()
    command = parse(argv)
    handlers = {}
    for name in ("SIGTERM", "SIGHUP"):  # the latter when a terminal is closed, not on Windows
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            handlers[number] = signal.signal(number, _interrupt)
    try:
        code = command.run(Console(width=None if sys.stdout.isatty() else 110))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:  # a test calls this in its own process
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise SystemExit(min(code, 255))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
