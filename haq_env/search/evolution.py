"""Regularised evolution (Real et al., AAAI 2019), the default black-box search."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from haq_env.policy import Bits
from haq_env.search.history import History, Trial, begin, measure, trial_of
from haq_env.task import Task

POPULATION, TOURNAMENT, MUTATION = 50, 10, 0.05


def evolution(task: Task, evaluations: int, seed: int) -> History:
    """Keep a queue of policies; mutate the best of a random few; drop the oldest.

    The first population is the uniform policy and mutations of it.
    """
    rng = np.random.default_rng(seed)
    history = begin(task, evaluations)
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


def measure_all(task: Task, requested: Sequence[Bits], history: History) -> list[Trial]:
    """Project policies, each [L, 2], evaluate them as one batch, and add each as it comes."""
    batch = [task.project(bits) for bits in requested]
    trials = []
    for bits, wish, result in zip(batch, requested, task.evaluate_each(batch), strict=True):
        trials.append(trial_of(task, bits, wish, result.accuracy, result.seconds, result.cache_hit))
        history.add(trials[-1])
    return trials


def mutate(task: Task, bits: Bits, rng: np.random.Generator, rate: float = MUTATION) -> Bits:
    """Try to move some widths, at least one, by one or two; the space's limits hold."""
    steps = np.array(task.space.steps)
    chosen = rng.random(len(steps)) < rate
    chosen[rng.integers(len(steps))] = True
    moved = bits.copy()
    size = rng.choice([-2, -1, 1, 2], size=len(steps))
    layer, side = steps[chosen].T
    moved[layer, side] += size[chosen]
    return task.space.clip(moved)
