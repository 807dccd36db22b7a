"""The evaluator of real networks: what is known is remembered, the rest is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from haq_env.errors import unknown_name
from haq_env.evaluation.answers import Answers, key_of
from haq_env.evaluation.bench import Bench, Subject
from haq_env.evaluation.measuring import Measurer
from haq_env.evaluation.recipe import Evaluation, Recipe
from haq_env.evaluation.stopping import EarlyStopping
from haq_env.policy import Bits, as_policy

if TYPE_CHECKING:
    from haq_env.evaluation.cache import EvaluationCache, Origin


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
        reuse_bytes: memory for activations of earlier policies, so that without finetuning a
            policy starts where it parts from them; it changes no answer. 0 switches it off.
        stopping: when candidates are given up early, see `haq_env.evaluation.stopping`; None
            measures all of them on all images.

    Attributes:
        measurer: what measures policies that are not known.
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
        reuse_bytes: int = REUSE_BYTES,
        stopping: EarlyStopping | None = None,
    ) -> None:
        self.measurer = Measurer(
            subject, recipe, seed, workers=workers, reuse_bytes=reuse_bytes, stopping=stopping
        )
        self.evaluations = 0
        self.answers = Answers(cache, races=stopping is not None)
        self._fingerprints: dict[tuple[int, bool], str] = {}  # by threads and use of graphs

    @property
    def subject(self) -> Subject:
        """Network, data and quantizer."""
        return self.measurer.subject

    @property
    def recipe(self) -> Recipe:
        """The finetuning inside every evaluation."""
        return self.measurer.recipe

    @property
    def seed(self) -> int:
        """Of the order of training images."""
        return self.measurer.seed

    @property
    def stopping(self) -> EarlyStopping | None:
        """When candidates are given up early; None for never."""
        return self.measurer.stopping

    @property
    def bench(self) -> Bench:
        """Network and images, loaded at the first use."""
        return self.measurer.bench

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """What decides the last digits of sums besides the machine, for addresses in a cache."""
        return self.measurer.arithmetic

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
        with self.measurer.alone():
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
        if known is not None:
            return known
        return self._keep(key, self.measurer.measure(bits, self.answers.best))

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
        if len(missing) > 1 and self.bench.shares(self.recipe):
            missing.sort()  # policies that begin alike follow each other
        for key in missing:
            self.bench.network.set_policy(which[key])  # a wrong one is an error now
        self.evaluations += len(batch)
        answers = self.measurer.measure_each([which[key] for key in missing], self.answers.best)
        return self._in_order(keys, found, answers, missing)

    def _in_order(
        self,
        keys: Sequence[bytes],
        found: dict[bytes, Evaluation | None],
        answers: Iterable[Evaluation],
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

    def remember(self, bits: Bits, accuracy: float) -> None:
        """Keep the accuracy of a policy, int64 [L, 2], that an earlier run measured.

        With early stopping, one that is below the best may be an estimate, and counts as one.
        """
        self.answers.remember(key_of(as_policy(bits, len(self.subject.layers))), accuracy)

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

        Raises:
            InputError: there is no such split, or bits that this quantizer does not define.
        """
        bench = self.bench
        for part in parts:
            if part not in bench.images:
                raise unknown_name("split", part, bench.images)
        with self.measurer.alone():
            return bench.measure(bits, recipe, seed, parts)

    def close(self) -> None:
        """End the worker processes, if there are any; the next batch would start new ones."""
        self.measurer.close()

    def _keep(self, key: bytes, answer: Evaluation) -> Evaluation:
        return self.answers.keep(key, answer, self._address, self._origin())

    def _address(self, key: bytes) -> str:
        """Return where the cache keeps a policy; everything but the policy is read only once."""
        import torch

        from haq_env.evaluation.fingerprint import digest, fingerprint

        # a forked process has another number of threads
        kind = torch.get_num_threads(), self.measurer.graphs.most > 0
        if kind not in self._fingerprints:
            settings: tuple[object, ...] = (self.subject.clip, self.recipe, self.seed)
            if self.stopping is not None:  # what survives is measured in another order
                settings += (self.stopping,)
            settings += self.arithmetic
            bench = self.bench
            with self.measurer.alone():
                self._fingerprints[kind] = fingerprint(bench.network, bench.images, settings)
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
        return {**self.__dict__, "_fingerprints": {}}  # of the bench and of this process
