"""Regularised evolution (Real et al., AAAI 2019), the default black-box search."""

from __future__ import annotations

from collections import deque

import numpy as np

from haq_env.search.history import History, Trial, begin, measure, measure_all
from haq_env.search.mutation import mutate
from haq_env.task import Task

POPULATION, TOURNAMENT = 50, 10


def evolution(task: Task, evaluations: int, seed: int, history: History | None = None) -> History:
    """Keep a queue of policies; mutate the best of a random few; drop the oldest.

    The first population is the uniform policy and mutations of it.
    """
    rng = np.random.default_rng(seed)
    history = begin(task, evaluations, history)
    queue: deque[Trial] = deque(history, maxlen=POPULATION)
    first = []
    for size in range(1, min(POPULATION, evaluations // 4)):
        rng.integers(size, size=TOURNAMENT)  # keeps later draws where published runs have them
        first.append(mutate(task, history[0].bits, rng))
    queue.extend(measure_all(task, first, history))
    while len(history) < evaluations:
        few = rng.integers(len(queue), size=TOURNAMENT)
        parent = max((queue[i] for i in few), key=lambda t: t.accuracy)
        queue.append(measure(task, mutate(task, parent.bits, rng), history))
    return history
