"""What a search shows while it runs."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from haq_env.search.history import History
from haq_env.task import Task


class SearchProgress:
    """A line with episode, best accuracy and its cost, and the time that is left.

    Args:
        task: the problem.
        episodes: how many episodes there will be.
        console: where to draw.
    """

    def __init__(self, task: Task, episodes: int, console: Console) -> None:
        self._task, self._console = task, console
        self._bar = Progress(
            TextColumn("episode {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[best]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            expand=True,
        )
        self._line = self._bar.add_task("search", total=episodes, best="")
        self._shown = -1.0

    def __call__(self, history: History) -> None:
        """Show the best evaluation; every new best gets a line that stays."""
        best = history.best
        reward = self._task.reward(best.accuracy)
        if best.accuracy > self._shown:
            self._shown = best.accuracy
            name = "uniform policy" if len(history) == 1 else f"episode {len(history) - 1}"
            self._console.print(
                f"{name}: accuracy {best.accuracy:.2f} %, reward {reward:+.3f}, "
                f"{self._task.budget.metric} {best.cost_ratio:.3f} of 8 bits",
                markup=False,
                soft_wrap=True,
            )
        self._bar.update(
            self._line,
            completed=len(history) - 1,
            best=f"best {best.accuracy:.2f} % (reward {reward:+.3f}), cost {best.cost_ratio:.3f}",
        )

    def __enter__(self) -> SearchProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
