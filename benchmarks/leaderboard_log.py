"""A log of what sweeps begin and finish, for benchmarks that kill them.

A store and a cache say what there is, and not how often it was made: the second of two equal
answers leaves no trace in them. Here every line is appended in one write, and stays there whoever
is killed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from haq_env.evaluation.cache import EvaluationCache, Origin
from haq_env.evaluation.measuring import Measurer
from haq_env.evaluation.recipe import Evaluation
from haq_env.policy import Bits, to_digits

VARIABLE = "HAQ_LEADERBOARD_LOG"  # names the file in the environment of worker processes
MEASURE, KEPT = "measure", "kept"  # a policy: its measurement begins; its answer is on the disk
RUN, DONE = "run", "done"  # a cell: likewise
_FINISHED = {MEASURE: KEPT, RUN: DONE}


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        what: `MEASURE`, `KEPT`, `RUN` or `DONE`.
        name: of the policy or the cell.
    """

    what: str
    name: str


class Log:
    """An append-only file.

    Args:
        path: made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, what: str, name: str) -> None:
        """Append one line, as a whole."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{what} {name}\n".encode())
        finally:
            os.close(file)

    def read(self) -> list[Entry]:
        """Return what there is by now."""
        if not self.path.exists():
            return []
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]  # one may be half there
        return [Entry(*line.split(" ", 1)) for line in whole.splitlines()]


def done_again(before: Sequence[Entry], after: Sequence[Entry]) -> str:
    """Say what begins in the later lines though it was finished in the earlier ones.

    Returns:
        One line; empty if there is nothing.
    """
    finished = {entry for entry in before if entry.what in _FINISHED.values()}
    again = [
        entry
        for entry in after
        if entry.what in _FINISHED and Entry(_FINISHED[entry.what], entry.name) in finished
    ]
    if not again:
        return ""
    kinds = ", ".join(sorted({"policy" if e.what == MEASURE else "run" for e in again}))
    return f"finished before, and {len(again)} times begun again ({kinds}): {again[0].name}"


def watch(log: Log) -> None:
    """Log all measurements of this process from now on."""
    measure, put = Measurer.measure, EvaluationCache.put

    def measured(self: Measurer, bits: Bits, best: float = -math.inf) -> Evaluation:
        log.write(MEASURE, _name(bits))
        return measure(self, bits, best)

    def kept(
        self: EvaluationCache,
        key: str,
        accuracy: float,
        seconds: float,
        bits: Bits,
        origin: Origin,
    ) -> float:
        answer = put(self, key, accuracy, seconds, bits, origin)
        log.write(KEPT, _name(bits))
        return answer

    Measurer.measure = measured  # type: ignore[method-assign]
    EvaluationCache.put = kept  # type: ignore[method-assign]


def _name(bits: Bits) -> str:
    return "/".join(to_digits(bits))
