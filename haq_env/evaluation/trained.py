"""The evaluator of real networks: restore, set bits, finetune, recalibrate, measure."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from haq_env.errors import InputError
from haq_env.evaluation.answers import Answer, Answers, key_of
from haq_env.evaluation.batch import WorkerError, Workers
from haq_env.evaluation.bench import Bench, Subject
from haq_env.evaluation.device import check_device, one_thread, own_modes, survive_forks
from haq_env.evaluation.recipe import Evaluation, Recipe
from haq_env.evaluation.stopping import EarlyStopping, Score
from haq_env.policy import Bits, as_policy

if TYPE_CHECKING:
    from haq_env.evaluation.cache import EvaluationCache, Origin
    from haq_env.evaluation.graphs import Together


REUSE_BYTES = 1 << 29  # activations of earlier policies


class TrainedEvaluator:
    """Accuracy of a quantized network after finetuning, the same for the same policy.

    An evaluation restores the float weights, sets the bits, finetunes, recomputes the batch-norm
    statistics and measures top-1 on images that the finetuning never saw and that are not the
    test set. Answers are remembered, and kept in a cache if there is one. Torch, data and weights
    are loaded at the first evaluation, so building one is cheap, and they do not travel when it
    is pickled or copied.

    Args:
        subject: network, data and quantizer.
        recipe: the finetuning inside every evaluation.
        seed: of the order of training images. It is one seed for all policies: policies then
            differ by their bits and not by their luck.
        cache: answers of other processes and earlier runs; None keeps them in memory only.
        workers: processes that measure the policies of a batch side by side. More than one makes
            every measurement, here as there, run on one thread, so that an answer does not depend
            on where it was computed; CUDA graphs are not used then.
        reuse: bytes for activations of earlier policies, so that without finetuning a policy
            starts where it parts from them; it changes no answer. 0 switches it off.
        stopping: when candidates are given up early, see `haq_env.evaluation.stopping`; None
            measures all of them on all images.

    Attributes:
        evaluations: how many evaluations were asked for, remembered ones included.
        answers: those that are known, with the cache.
    """

    def __init__(
        self,
        subject: Subject,
        recipe: Recipe,
        seed: int = 0,
        cache: EvaluationCache | None = None,
        *,
        workers: int = 1,
        reuse: int = REUSE_BYTES,
        stopping: EarlyStopping | None = None,
    ) -> None:
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise InputError(f"seed must be an integer, 0 or more, not {seed!r}.")
        if not isinstance(workers, (int, np.integer)) or workers < 1:
            raise InputError(f"workers must be an integer, 1 or more, not {workers!r}.")
        if reuse < 0:
            raise InputError(f"reuse is a number of bytes, 0 or more, not {reuse}.")
        # a graph's answers could differ from those of the workers
        self.subject = subject if workers == 1 else replace(subject, graphs="off")
        self.recipe = recipe
        self.seed = int(seed)
        self.workers = workers
        self.reuse = reuse
        self.stopping = stopping
        self.evaluations = 0
        self.answers = Answers(cache, races=stopping is not None)
        self._workers: Workers | None = None
        self._bench: Bench | None = None
        self._graphs: Together | None = None
        self._fingerprints: dict[tuple[int, bool], str] = {}  # by threads and use of graphs
        survive_forks()
        if subject.device != "cpu":
            check_device(subject.device)  # a wrong one is an error now, not at the first evaluation

    @property
    def seconds(self) -> float:
        """Time spent on evaluations that nobody remembered."""
        return self.answers.seconds

    @property
    def cache(self) -> EvaluationCache | None:
        """Answers of other processes and earlier runs."""
        return self.answers.cache

    @property
    def float_accuracy(self) -> float:
        """Top-1 of the float network on the held-out images, in percent."""
        bench = self.bench
        with self._alone():
            return bench.float_accuracy("val")

    def evaluate(self, bits: Bits) -> Evaluation:
        """Measure a policy, int64 [L, 2], on the held-out images.

        Raises:
            InputError: wrong shape, or bits that this quantizer does not define.
        """
        bits = as_policy(bits, len(self.subject.layers))
        key = key_of(bits)
        self.evaluations += 1
        known = self.answers.recall(key, self._address)
        return self._keep(key, self.measure(bits, self.answers.best)) if known is None else known

    def evaluate_batch(self, policies: Bits | Sequence[Bits]) -> list[Evaluation]:
        """Measure policies, int64 [N, L, 2], as `evaluate_each` does, and wait for all of them."""
        return list(self.evaluate_each(policies))

    def evaluate_each(self, policies: Bits | Sequence[Bits]) -> Iterator[Evaluation]:
        """Measure policies, int64 [N, L, 2]; in order, as `evaluate` would answer one by one.

        A policy that comes twice is measured once and is a hit the second time. With early
        stopping all of them race against the best accuracy before the batch.

        Returns:
            The answers, each as soon as it and all before it are there.

        Raises:
            InputError: as `evaluate` does, before anything is measured.
            WorkerError: a worker process ended; answers that had arrived are remembered.
        """
        batch = [as_policy(bits, len(self.subject.layers)) for bits in policies]
        keys = [key_of(bits) for bits in batch]
        which = dict(zip(keys, batch, strict=True))
        found = {key: self.answers.recall(key, self._address) for key in which}
        missing = [key for key, known in found.items() if known is None]
        if len(missing) > 1 and self._shares:  # policies that begin alike follow each other
            missing.sort()
        for key in missing:
            self.bench.network.set_policy(which[key])  # a wrong one is an error now
        self.evaluations += len(batch)
        return self._in_order(keys, found, self._measure([which[key] for key in missing]), missing)

    def _in_order(
        self,
        keys: Sequence[bytes],
        found: dict[bytes, Evaluation | None],
        answers: Iterable[Answer],
        missing: Sequence[bytes],
    ) -> Iterator[Evaluation]:
        """Keep answers as they come, and yield them in the order of the keys."""
        coming = zip(missing, answers, strict=True)
        for key in keys:
            while (result := found[key]) is None:
                arrived, answer = next(coming)
                found[arrived] = self._keep(arrived, answer)
            yield result
            found[key] = self.answers.recall(key, self._address)

    @property
    def _shares(self) -> bool:
        """Whether policies that begin alike share their beginnings."""
        return bool(self.reuse) and not self.recipe.steps and self.bench.paths.name == "float"

    @property
    def _together(self) -> Together:
        """The choice between CUDA graphs and one by one, made at the first use."""
        from haq_env.evaluation.graphs import Together

        if self._graphs is None:
            bench = self.bench
            with self._alone():
                self._graphs = Together(
                    bench, self.subject.graphs, self.recipe, self.seed, self.reuse, self.stopping
                )
        return self._graphs

    def measure(self, bits: Bits, best: float = -math.inf) -> Answer:
        """Measure a policy, int64 [L, 2], without looking it up or keeping the answer.

        Args:
            bits: the policy.
            best: the best accuracy so far, in percent, for early stopping.
        """
        found = self._side_by_side([bits])
        if not isinstance(found, str):
            return found[0]
        bench = self.bench
        start = time.perf_counter()
        score = Score(len(bench.images["val"]), self.stopping, best)
        with self._alone():
            accuracy = bench.judge(bits, self.recipe, self.seed, score, self.reuse)
        note = "; ".join(filter(None, (bench.note, found)))
        return Answer(accuracy, time.perf_counter() - start, score.stopped, note)

    def remember(self, bits: Bits, accuracy: float) -> None:
        """Keep the accuracy of a policy, int64 [L, 2], that an earlier run measured.

        With early stopping, one that is below the best may be an estimate, and counts as one.
        """
        self.answers.remember(key_of(as_policy(bits, len(self.subject.layers))), accuracy)

    def close(self) -> None:
        """End the worker processes, if there are any; the next batch would start new ones."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def final(
        self,
        bits: Bits | None,
        recipe: Recipe,
        seed: int,
        parts: tuple[str, ...] = ("val", "test"),
    ) -> dict[str, float]:
        """Measure a policy after another, usually longer finetuning.

        Args:
            bits: int64 [L, 2], or None for the float network, finetuned alike.
            recipe: the finetuning.
            seed: of the order of training images.
            parts: splits to measure on: ``"train"``, ``"val"``, ``"test"``.

        Returns:
            Top-1 in percent by split.
        """
        bench = self.bench
        with self._alone():
            return bench.measure(bits, recipe, seed, parts)

    @property
    def bench(self) -> Bench:
        """Network and images, loaded at the first use."""
        if self._bench is None:
            with self._alone():
                self._bench = Bench(self.subject)
        return self._bench

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Compute the same whatever the caller's settings of torch are."""
        with own_modes(), one_thread() if self.workers > 1 else nullcontext():
            yield

    def _keep(self, key: bytes, answer: Answer) -> Evaluation:
        return self.answers.keep(key, answer, self._address, self._origin())

    def _measure(self, policies: list[Bits]) -> Iterable[Answer]:
        """Yield the answers to policies, measured here or by workers."""
        best = self.answers.best
        if self.workers == 1 or len(policies) < 2:
            if len(policies) > 1 and self._shares:
                with self._alone():
                    shared = self.bench.prefixes(self.recipe, self.stopping, self.reuse)
                    if not isinstance(shared, str):
                        shared.expect(policies)
            yield from self._groups(policies, best)
            return
        if self._workers is None:
            subject = self.subject
            if subject.inference == "auto":  # workers that time it themselves could differ
                subject = replace(subject, inference=self.bench.paths.name)
            alone = TrainedEvaluator(
                subject, self.recipe, self.seed, reuse=self.reuse, stopping=self.stopping
            )
            self._workers = Workers(alone, self.workers)
        try:
            yield from self._workers.measure(policies, best)
        except WorkerError:
            self._workers = None
            raise

    def _groups(self, policies: list[Bits], best: float) -> Iterator[Answer]:
        """Yield the answers to policies, as many at once as there is room for side by side."""
        while policies:
            size = self._together.most
            found = self._side_by_side(policies[:size]) if size > 1 else ""
            if isinstance(found, str):
                yield self.measure(policies[0], best)
            else:
                yield from found
            policies = policies[1 if isinstance(found, str) else size :]

    def _side_by_side(self, policies: Sequence[Bits]) -> list[Answer] | str:
        """Measure policies in CUDA graphs, or say why not; see `Together.measure`."""
        together = self._together  # chosen now, which is no evaluation's time
        start = time.perf_counter()
        with self._alone():
            found = together.measure(policies)
        if isinstance(found, str):
            return found
        seconds = (time.perf_counter() - start) / len(policies)
        return [Answer(each, seconds, False, self.bench.paths.note) for each in found]

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """What decides the last digits of sums besides the machine, for addresses in a cache."""
        from haq_env.evaluation.fingerprint import STEPS

        path = self.bench.paths.name
        found = ((f"steps {STEPS}",) if self.recipe.steps else ()) + (path,) * (path != "float")
        return (*found, "CUDA graphs") if self._together.most > 0 else found

    def _address(self, key: bytes) -> str:
        """Return where the cache keeps a policy; everything but the policy is read only once."""
        import torch

        from haq_env.evaluation.fingerprint import digest, fingerprint

        # a forked process has another number of threads
        kind = torch.get_num_threads(), self._together.most > 0
        if kind not in self._fingerprints:
            settings: tuple[object, ...] = (self.subject.clip, self.recipe, self.seed)
            if self.stopping is not None:  # what survives is measured in another order
                settings += (self.stopping,)
            settings += self.arithmetic
            with self._alone():
                self._fingerprints[kind] = fingerprint(
                    self.bench.network, self.bench.images, settings
                )
        return digest([(self._fingerprints[kind], key)])

    def _origin(self) -> Origin:
        from haq_env.evaluation.cache import Origin

        subject = self.subject
        data = subject.dataset
        return Origin(
            network=subject.layers.network,
            dataset=data if isinstance(data, str) else data.name,
            quantizer=subject.quantizer + (f" {subject.clip}" if subject.clip != "mse" else ""),
            recipe=self.recipe.name + ("" if self.stopping is None else ", racing"),
            seed=str(self.seed),
        )

    def __getstate__(self) -> dict[str, Any]:
        # the fingerprint is of the bench and of this process
        nothing = {"_bench": None, "_graphs": None, "_workers": None}
        return {**self.__dict__, **nothing, "_fingerprints": {}}
