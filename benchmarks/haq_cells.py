"""One cell of HAQ's tables: search it, finetune what was found, measure, and write it down.

Every answer is on the disk as soon as it is there: evaluations in the shared cache, final
accuracies and results as a file each. What was killed is asked again, and answers from them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from haq_paper import BLOCKS, Block
from haq_results import EIGHT, FLOAT, UNIFORM, Result, from_record, to_record
from result_files import read, weights_digest, write

from haq_env.agents.methods import search_method
from haq_env.data import Dataset
from haq_env.data.store import digest
from haq_env.errors import InputError
from haq_env.evaluation import Evaluation, Recipe
from haq_env.evaluation.cache import EvaluationCache
from haq_env.evaluation.fingerprint import TRAINING_STEP
from haq_env.evaluation.measuring import Measurer
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.final import choose
from haq_env.make import make_task
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits, to_digits, uniform
from haq_env.task import Task
from haq_env.versions import processor

CHOOSING = 999  # seed of the finetuning that chooses among candidates; no figure uses it


@dataclass(frozen=True)
class Protocol:
    """What every row of a reproduction has in common; results of another one do not compare."""

    dataset: str
    val_images: int
    test_images: int
    tier: str
    inference: str
    search: Recipe
    final: Recipe
    final_seeds: tuple[int, ...]
    evaluations: int
    search_seed: int
    candidates: int
    device: str
    threads: int
    images: str
    note: str
    answers: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Job:
    """One method in one cell; a reference of a network where the block is empty."""

    network: str
    block: str
    budget: str
    method: str
    quantizer: str

    @property
    def name(self) -> str:
        """What progress lines call it."""
        return ", ".join(filter(None, (self.network, self.block, self.budget, self.method)))

    @property
    def cell(self) -> tuple[str, str, str]:
        """Network, block and budget."""
        return self.network, self.block, self.budget

    @property
    def searches(self) -> bool:
        """Whether policies are searched, or only one is measured."""
        return bool(self.block) and self.method != UNIFORM

    def serves(self, search: Job) -> bool:
        """Whether a search is held against this: its uniform policy, or a reference."""
        if self.block:
            return self.method == UNIFORM and self.cell == search.cell
        return self.network == search.network and self.quantizer in ("", search.quantizer)

    def path(self, folder: Path) -> Path:
        """Where its result is kept."""
        parts = [self.block, self.budget] if self.block else ["references", self.quantizer]
        return folder.joinpath(self.network, *filter(None, parts), f"{self.method}.json")


class TimeOver(Exception):
    """The time that the user gave is over; what is done is kept."""


class _Told(Measurer):
    """A measurer that says when it begins with a policy, and how long it took."""

    def __init__(self, of: Measurer, watch: Callable[[str, float | None], None]) -> None:
        super().__init__(of.subject, of.recipe, of.seed, reuse_bytes=of.reuse_bytes)
        self._watch = watch

    def measure(self, bits: Bits, best: float = -math.inf) -> Evaluation:
        """Measure a policy, and tell."""
        self._watch("evaluation", None)
        answer = super().measure(bits, best)
        self._watch("evaluation", answer.seconds)
        return answer


class Watched(TrainedEvaluator):
    """An evaluator that says how far it is, and whose final accuracies outlive the process.

    Args:
        of: the evaluator with the settings.
        folder: of the final accuracies.
        watch: called before every evaluation and every final finetuning with what it will be,
            and after it with the same and its seconds; may raise `TimeOver` before.
    """

    def __init__(
        self, of: TrainedEvaluator, folder: Path, watch: Callable[[str, float | None], None]
    ) -> None:
        super().__init__(of.subject, of.recipe, of.seed, of.cache)
        self.measurer = _Told(of.measurer, watch)
        self._folder, self._watch = folder, watch

    def evaluate(self, bits: Bits) -> Evaluation:
        """Answer for a policy, and tell of answers that were known."""
        result = super().evaluate(bits)
        if result.cache_hit:
            self._watch("evaluation", 0.0)
        return result

    def kernels(self, bits: Bits | None) -> str:
        """Return what measures a policy on this machine: ``"int8"`` or ``"float"``."""
        return "float" if bits is None else self.bench.inference.name

    def final(
        self,
        bits: Bits | None,
        recipe: Recipe,
        seed: int,
        parts: tuple[str, ...] = ("val", "test"),
    ) -> dict[str, float]:
        """Finetune and measure, unless the answer is on the disk already.

        Both splits are measured, whatever is asked for: what is kept serves later questions, too.
        """
        policy = None if bits is None else bits.tolist()
        asked = {
            "arithmetic": self.kernels(bits),
            "quantizer": None if bits is None else self.subject.quantizer,
            "policy": policy,
            "recipe": asdict(recipe),
            "seed": seed,
            "processor": processor(),
            "steps": TRAINING_STEP,
        }
        path = self._folder / f"{digest(asked)}.json"
        if path.exists():
            return {part: float(value) for part, value in read(path)["accuracy"].items()}
        self._watch("final finetuning", None)
        start = time.perf_counter()
        accuracy = super().final(bits, recipe, seed)
        self._watch("final finetuning", time.perf_counter() - start)
        write(path, {**asked, "accuracy": accuracy})
        return accuracy


class Lab:
    """A trained network, and what all of its cells share.

    Args:
        network: its name.
        data: images; the network's weights are found by their name.
        protocol: what all rows have in common.
        checkpoint: weights; the bundled ones when None.
        device: torch device; the protocol has only its kind.
        folder: of the results of this protocol.
        cache: of evaluations; many processes may share it.
        watch: see `Watched`.
    """

    def __init__(
        self,
        network: str,
        data: Dataset,
        protocol: Protocol,
        checkpoint: Path | None,
        device: str,
        folder: Path,
        cache: EvaluationCache,
        watch: Callable[[str, float | None], None],
    ) -> None:
        self._network, self._data, self._protocol = network, data, protocol
        self._checkpoint, self._device, self._folder = checkpoint, device, folder
        self._cache, self._watch = cache, watch
        self._evaluators: dict[str, Watched] = {}
        probe = make_task(network, data, checkpoint=checkpoint, evaluator=protocol.search)
        self._subject, self._layers = probe.trained().subject, probe.layers
        assert self._subject.checkpoint is not None
        self.weights = weights_digest(self._subject.checkpoint)

    def run(self, job: Job) -> Result:
        """Do a job, and write its result down."""
        start = time.perf_counter()
        result = self._cell(job) if job.block else self._reference(job)
        result = replace(result, seconds=time.perf_counter() - start)
        write(job.path(self._folder), to_record(result))
        return result

    def _evaluator(self, quantizer: str) -> Watched:
        if quantizer not in self._evaluators:
            protocol = self._protocol
            subject = replace(
                self._subject,
                quantizer=quantizer,
                device=self._device,
                inference=protocol.inference,
            )
            plain = TrainedEvaluator(subject, protocol.search, cache=self._cache)
            finals = self._folder / "finals" / self.weights
            self._evaluators[quantizer] = Watched(plain, finals, self._watch)
        return self._evaluators[quantizer]

    def _task(self, block: Block, budget: str) -> Task:
        return make_task(
            self._network,
            self._data,
            block.hardware,
            metric=block.metric,
            budget=budget,
            bits=block.bits,
            quantizer=block.quantizer,
            evaluator=self._evaluator(block.quantizer),
            checkpoint=self._checkpoint,
        )

    def _cell(self, job: Job) -> Result:
        block, protocol = BLOCKS[job.block], self._protocol
        task = self._task(block, job.budget)
        task.float_accuracy  # noqa: B018  # loads and calibrates, which is no part of a search
        if job.searches:
            history = search_method(job.method)(task, protocol.evaluations, protocol.search_seed)
            best = choose(task, history, protocol.final, CHOOSING, protocol.candidates)
            bits, accuracy = best.bits, best.accuracy
            count, charge = len(history), history.charge
        else:
            bits, count, charge = task.uniform(), 1, None
            accuracy = task.evaluate(bits).accuracy
        eight = uniform(len(task.layers), MAX_BITS, MAX_BITS)
        return self._result(
            job,
            bits,
            evaluations=count,
            charge=0.0 if charge is None else charge.evaluations,
            searched=accuracy,
            cost=task.cost(bits),
            limit=task.budget.limit,
            eight=task.budget.reference,
            counted=counted(task, block, bits),
            counted_eight=counted(task, block, eight),
        )

    def _reference(self, job: Job) -> Result:
        if job.method == EIGHT:
            return self._result(job, uniform(len(self._layers), MAX_BITS, MAX_BITS))
        evaluator = self._evaluator("linear")
        as_trained = evaluator.bench.float_accuracy("test")
        return self._result(job, None, untrained=as_trained)

    def _result(self, job: Job, bits: Bits | None, **known: Any) -> Result:
        evaluator = self._evaluator(job.quantizer or "linear")
        protocol = self._protocol
        finals = [evaluator.final(bits, protocol.final, seed) for seed in protocol.final_seeds]
        digits = ("", "") if bits is None else to_digits(bits)
        nan = dict.fromkeys(
            ("searched", "untrained", "cost", "limit", "eight", "counted", "counted_eight"),
            math.nan,
        )
        return Result(
            **asdict(job),
            weights=self.weights,
            arithmetic=evaluator.kernels(bits),
            processor=processor(),
            steps=TRAINING_STEP,
            w_bits=digits[WEIGHT],
            a_bits=digits[ACTIVATION],
            val=tuple(each["val"] for each in finals),
            test=tuple(each["test"] for each in finals),
            seconds=0.0,
            **{"evaluations": 0, "charge": 0.0, **nan, **known},
        )


def counted(task: Task, block: Block, bits: Bits) -> float:
    """Return the cost of the layers that the paper's table counts."""
    layers = task.costs.per_layer(bits, block.metric)
    if block.inner:
        return float(layers[1:-1].sum())
    return float(layers.sum()) + task.costs.constant(block.metric)


def load(job: Job, folder: Path) -> Result | None:
    """Read a finished job, None where there is none.

    Raises:
        InputError: its file is damaged.
    """
    path = job.path(folder)
    if not path.exists():
        return None
    try:
        return from_record(read(path))
    except InputError as error:
        raise InputError(f"{path}: {error} Remove it, and it is run again.") from error


def references(network: str, quantizers: list[str]) -> list[Job]:
    """List what a network's cells are held against besides uniform bits."""
    eight = [Job(network, "", "", EIGHT, quantizer) for quantizer in quantizers]
    return [Job(network, "", "", FLOAT, ""), *eight]
