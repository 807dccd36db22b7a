"""What a training shows while it runs."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from haq_env.training.trainer import Epoch, Trainer


class TrainingProgress:
    """A line for each epoch, with the time that is left, and a bar where there is a terminal.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total} steps"), TimeRemainingColumn(compact=True),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task, self._epochs = TaskID(0), 0

    def begin(self, trainer: Trainer) -> None:
        """Say where the training is."""
        done, self._epochs = len(trainer.rows), trainer.training.epochs
        self._console.print(
            f"{done} of {self._epochs} epochs are done; {trainer.steps} steps each",
            highlight=False,
            soft_wrap=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("epoch", total=trainer.steps, epoch=done + 1)

    def step(self) -> None:
        """Move the bar."""
        self._bar.advance(self._task)

    def row(self, row: Epoch, left: float) -> None:
        """Print the line of an epoch."""
        self._bar.reset(self._task, epoch=row.epoch + 1)
        self._console.print(
            f"epoch {row.epoch}/{self._epochs}: loss {row.loss:.4f}, train {row.train:.2f} %, val "
            f"{row.val:.2f} %, {row.seconds:.1f} s; {left / 60:.1f} min left",
            highlight=False,
            soft_wrap=True,
        )

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
