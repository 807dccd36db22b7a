"""How far a sweep is, on a terminal as a bar, and as a line for every run that ends."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from haq_env.leaderboard.protocol import Cell
from haq_env.leaderboard.sweep import Event


class Bar:
    """A context in which events are shown.

    Args:
        console: where to.
        total: how many runs there are.
        todo: those of them that are not done yet.
    """

    def __init__(self, console: Console, total: int, todo: Iterable[Cell]) -> None:
        self._left = sum(cell.evaluations for cell in todo)
        self._count = total
        self._made = 0  # evaluations of the runs that have ended
        self._start = time.monotonic()
        self._running: set[Cell] = set()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._console = console
        ended = total - len({*todo})
        self._task = self._bar.add_task("runs", total=total, completed=ended, left="")
        self._ended = ended

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def tell(self, event: Event) -> None:
        """Show an event."""
        if event.state == "running":
            self._running.add(event.cell)
        else:
            self._running.discard(event.cell)
            self._end(event)
        now = ", ".join(sorted({cell.method for cell in self._running}))
        self._bar.update(self._task, completed=self._ended, description=now or "runs")

    def _end(self, event: Event) -> None:
        if event.state != "waiting":
            self._ended += 1
            self._made += event.cell.evaluations
        left = self._remaining()
        self._bar.update(self._task, left=left)
        how: str = "failed, to be tried again" if event.state == "waiting" else event.state
        if event.error:
            how += f": {event.error.splitlines()[-1]}"
        about = f"{self._ended} of {self._count}{', ' + left if left else ''}"
        line = f"{time.strftime('%H:%M:%S')} {event.cell}: {how} ({about})"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _remaining(self) -> str:
        """Guess from the evaluations of the runs that have ended."""
        if not self._made or self._made >= self._left:
            return ""
        spent = time.monotonic() - self._start
        minutes = spent * (self._left - self._made) / self._made / 60
        return f"about {max(1, round(minutes))} min left"
