"""Measuring policies: here one by one, side by side in CUDA graphs, or in worker processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from haq_env.errors import InputError
from haq_env.evaluation.batch import WorkerError, Workers
from haq_env.evaluation.bench import Bench, Subject
from haq_env.evaluation.device import check_device, one_thread, own_modes, survive_forks
from haq_env.evaluation.recipe import Evaluation, Recipe
from haq_env.evaluation.stopping import EarlyStopping, Score
from haq_env.policy import Bits

if TYPE_CHECKING:
    from haq_env.evaluation.cuda_graphs import GraphChoice


class Measurer:
    """What measures policies and keeps no answers; the same policy gets the same one.

    Torch, data and weights are loaded at the first measurement, and they do not travel when a
    measurer is pickled or copied.

    Args:
        subject: network, data and quantizer.
        recipe: the finetuning before a policy is measured.
        seed: of the order of training images.
        workers: processes that measure side by side, see `TrainedEvaluator`.
        reuse_bytes: memory for activations of earlier policies; 0 for none.
        stopping: when candidates are given up early; None for never.

    Attributes:
        subject: as given; without CUDA graphs where there are workers.
        recipe, seed, workers, reuse_bytes, stopping: as given.

    Raises:
        InputError: a number is out of range, or the device cannot be used.
    """

    def __init__(
        self,
        subject: Subject,
        recipe: Recipe,
        seed: int = 0,
        *,
        workers: int = 1,
        reuse_bytes: int = 0,
        stopping: EarlyStopping | None = None,
    ) -> None:
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise InputError(f"seed must be an integer, 0 or more, not {seed!r}.")
        if not isinstance(workers, (int, np.integer)) or workers < 1:
            raise InputError(f"workers must be an integer, 1 or more, not {workers!r}.")
        if reuse_bytes < 0:
            raise InputError(f"reuse is a number of bytes, 0 or more, not {reuse_bytes}.")
        # a graph's answers could differ from those of the workers
        self.subject = subject if workers == 1 else replace(subject, graphs="off")
        self.recipe = recipe
        self.seed = int(seed)
        self.workers = workers
        self.reuse_bytes = reuse_bytes
        self.stopping = stopping
        self._workers: Workers | None = None
        self._bench: Bench | None = None
        self._graphs: GraphChoice | None = None
        survive_forks()
        if subject.device != "cpu":
            check_device(subject.device)  # a wrong one is an error now, not at the first evaluation

    @property
    def bench(self) -> Bench:
        """Network and images, loaded at the first use."""
        if self._bench is None:
            with self.alone():
                self._bench = Bench(self.subject, self.reuse_bytes, self.stopping)
        return self._bench

    @property
    def graphs(self) -> GraphChoice:
        """The choice between CUDA graphs and one by one, made at the first use."""
        from haq_env.evaluation.cuda_graphs import GraphChoice

        if self._graphs is None:
            bench = self.bench
            with self.alone():
                self._graphs = GraphChoice(bench, self.subject.graphs, self.recipe, self.seed)
        return self._graphs

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """What decides the last digits of sums besides the machine, for addresses in a cache."""
        from haq_env.evaluation.fingerprint import TRAINING_STEP

        path = self.bench.inference.name
        found = [f"steps {TRAINING_STEP}"] if self.recipe.steps else []
        found += [path] if path != "float" else []
        found += ["CUDA graphs"] if self.graphs.most > 0 else []
        return tuple(found)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Compute the same whatever the caller's settings of torch are."""
        with own_modes(), one_thread() if self.workers > 1 else nullcontext():
            yield

    def measure(self, bits: Bits, best: float = -math.inf) -> Evaluation:
        """Measure a policy, int64 [L, 2].

        Args:
            bits: the policy.
            best: the best accuracy so far, in percent, for early stopping.

        Raises:
            InputError: bits that this quantizer does not define.
        """
        found = self._side_by_side([bits])
        if found is not None:
            return found[0]
        bench = self.bench
        start = time.perf_counter()
        score = Score(len(bench.images["val"]), self.stopping, best)
        with self.alone():
            accuracy = bench.judge(bits, self.recipe, self.seed, score)
        note = "; ".join(filter(None, (bench.note, self.graphs.note)))
        seconds = time.perf_counter() - start
        return Evaluation(accuracy, seconds, stopped_early=score.stopped, note=note)

    def measure_each(self, policies: Sequence[Bits], best: float) -> Iterator[Evaluation]:
        """Measure policies, each int64 [L, 2]; yield the answers in order, as they come.

        Args:
            policies: those that begin alike had best follow each other.
            best: the best accuracy so far, in percent, for early stopping.

        Raises:
            InputError: as `measure`.
            WorkerError: a worker process ended.
        """
        if self.workers == 1 or len(policies) < 2:
            yield from self._here(policies, best)
            return
        if self._workers is None:
            self._workers = Workers(self._worker(), self.workers)
        try:
            yield from self._workers.measure(policies, best)
        except WorkerError:
            self._workers = None
            raise

    def close(self) -> None:
        """End the worker processes, if there are any; the next batch would start new ones."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def _here(self, policies: Sequence[Bits], best: float) -> Iterator[Evaluation]:
        """Yield the answers to policies, as many at once as there is room for side by side."""
        if len(policies) > 1:
            with self.alone():
                prefixes = self.bench.prefixes(self.recipe)
                if prefixes is not None:
                    prefixes.expect(policies)
        while policies:
            size = self.graphs.most
            found = self._side_by_side(policies[:size]) if size > 1 else None
            if found is None:
                found = [self.measure(policies[0], best)]
            yield from found
            policies = policies[len(found) :]

    def _side_by_side(self, policies: Sequence[Bits]) -> list[Evaluation] | None:
        """Measure policies in CUDA graphs; see `GraphChoice.measure`."""
        graphs = self.graphs  # chosen now, which is no evaluation's time
        start = time.perf_counter()
        with self.alone():
            found = graphs.measure(policies)
        if found is None:
            return None
        seconds = (time.perf_counter() - start) / len(policies)
        return [Evaluation(each, seconds, note=self.bench.inference.note) for each in found]

    def _worker(self) -> Measurer:
        """Return what every worker process gets a copy of."""
        subject = self.subject
        if subject.inference == "auto":  # workers that time it themselves could differ
            subject = replace(subject, inference=self.bench.inference.name)
        return Measurer(
            subject,
            self.recipe,
            self.seed,
            reuse_bytes=self.reuse_bytes,
            stopping=self.stopping,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bench": None, "_graphs": None, "_workers": None}
