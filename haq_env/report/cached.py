"""What an evaluation cache holds, as a table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from haq_env.evaluation.cache import EvaluationCache
from haq_env.report.units import Scale

_LEFT = ("network", "data set", "quantizer", "evaluator")
_RIGHT = ("seed", "answers", "time saved", "newest")


def cache_table(cache: EvaluationCache) -> Table:
    """Count the answers by origin.

    Args:
        cache: what to look into.

    Returns:
        One row for each origin with the number of answers, the time that finding them all again
        saves, and the day on which the newest was computed; and a row of totals.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    for column in (*_LEFT, *_RIGHT):
        right = column in _RIGHT
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    groups = cache.groups()
    for group in groups:
        day = group.newest.partition("T")[0]
        cells = (*group.origin, f"{group.entries:,}", _duration(group.seconds), day)
        table.add_row(*map(Text, cells))  # as Text: names may have brackets, which are markup
    entries, seconds = sum(g.entries for g in groups), sum(g.seconds for g in groups)
    table.add_section()
    table.add_row("total", "", "", "", "", f"{entries:,}", _duration(seconds), style="bold")
    size = cache.size()
    scale = Scale.of("size", size)
    table.title = Text(f"{cache.path}, {scale.write(size)} {scale.unit}", style="bold")
    return table


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 60 else f"{hours:,.1f} h"
