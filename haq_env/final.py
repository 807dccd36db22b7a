"""What a search ends with: a longer finetuning, the same for the found and the uniform policy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haq_env.errors import InputError
from haq_env.evaluation import Recipe
from haq_env.policy import Bits
from haq_env.report.scores import mean_and_error
from haq_env.report.tables import NetworkRow
from haq_env.search.history import Trial
from haq_env.task import Task


@dataclass(frozen=True)
class Final:
    """Accuracies of one policy after the final finetuning, one number for each seed, percent."""

    val: tuple[float, ...]
    test: tuple[float, ...]

    def mean_and_error(self, part: str) -> tuple[float, float]:
        """Return the mean over seeds and its standard error (NaN for one seed)."""
        return mean_and_error(getattr(self, part))

    def record(self) -> dict[str, Any]:
        """Return what goes into ``policy.json``."""
        return {"val": list(self.val), "test": list(self.test)}


def choose(task: Task, history: Sequence[Trial], recipe: Recipe, seed: int, count: int) -> Trial:
    """Give the best few policies the final finetuning, and take the one that is best after it.

    The search's short finetuning ranks policies with noise, and the first of 300 is partly first
    by luck. Only held-out (val) images decide; the seed should be none that the report uses.

    Args:
        task: the problem.
        history: what the search has measured.
        recipe: the final finetuning.
        seed: of the order of training images.
        count: how many distinct policies are on the list; 1 takes the search's best as it is.
    """
    ranked = sorted(history, key=lambda trial: -trial.accuracy)
    distinct: dict[tuple[str, str], Trial] = {}
    for trial in ranked:  # equally good ones stay in their order: the first is the search's best
        distinct.setdefault((trial.w_bits, trial.a_bits), trial)
    few = list(distinct.values())[:count]
    if len(few) == 1 or not task.is_trained:
        return few[0]
    evaluator = task.trained()
    return max(few, key=lambda trial: evaluator.final(trial.bits, recipe, seed, ("val",))["val"])


def finish(
    task: Task, bits: Bits, recipe: Recipe, seeds: tuple[int, ...], path: Path | None = None
) -> Final:
    """Finetune a policy for longer and measure it, once for each seed.

    The seeds should be others than the one of the search, whose luck the search has used up.

    Args:
        task: the problem.
        bits: the policy, int64 [L, 2].
        recipe: the final finetuning.
        seeds: of the order of training images.
        path: file for the finetuned, quantized network of the first seed, see
            `haq_env.quantization.frozen`; None keeps none.
    """
    evaluator = task.trained()
    from haq_env.quantization.frozen import save_quantized

    results = []
    for seed in seeds:
        results.append(evaluator.final(bits, recipe, seed))
        if path is not None and seed == seeds[0]:
            about = {**task.settings, "accuracy": results[0], "finetune_seed": seed}
            path.unlink(missing_ok=True)  # it may be of an earlier policy
            try:
                save_quantized(path, evaluator.bench.network, about)
            except InputError as error:  # the policy is what must not be lost
                warnings.warn(f"the network is not written: {error}", stacklevel=2)
    return Final(tuple(r["val"] for r in results), tuple(r["test"] for r in results))


def rows(task: Task, finals: Mapping[str, tuple[Bits, Final]]) -> list[NetworkRow]:
    """Build the closing table: the float network, then policies with their costs."""
    table = []
    if task.is_trained:
        bench = task.trained().bench
        accuracies = {part: (bench.float_accuracy(part), 0.0) for part in ("val", "test")}
        table.append(NetworkRow("float", accuracies, {}))
    for name, (bits, final) in finals.items():
        accuracies = {part: final.mean_and_error(part) for part in ("val", "test")}
        table.append(NetworkRow(name, accuracies, task.all_costs(bits)))
    return table
