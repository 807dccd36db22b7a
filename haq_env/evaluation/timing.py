"""How long something takes, for choices between two ways of computing the same."""

from __future__ import annotations

import time
from collections.abc import Callable


def shortest_time(run: Callable[[], object], rounds: int) -> float:
    """Return the shortest of some times in seconds: what disturbs a run only makes it longer."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
