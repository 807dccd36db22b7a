"""A search that lives in a folder: settings, log, agent, and the report at the end."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from haq_env.env import QuantizationEnv
from haq_env.errors import InputError
from haq_env.evaluation import Recipe
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.files import replace_file
from haq_env.policy import Bits
from haq_env.report.tables import Row
from haq_env.search.history import History, Trial
from haq_env.task import Task
from haq_env.versions import versions

NETWORK = "network.safetensors"
_FILES = ("episodes.csv", "agent.pt", "policy.json", NETWORK)  # what a run must not lose
_LISTED = "`haq-env envs` lists the environments."


def make_env(id: str, **settings: Any) -> QuantizationEnv:
    """Make one of this package's environments, without Gymnasium's wrappers.

    Raises:
        InputError: there is no such environment, or the settings do not fit together.
    """
    try:
        env = gym.make(id, **settings).unwrapped
    except (gym.error.Error, ImportError) as error:
        text = str(error)
        raise InputError(f"{text}{'' if text[-1:] in '.?' else '.'} {_LISTED}") from error
    except TypeError as error:  # an environment of another package, which has other settings
        raise InputError(f"{id!r} cannot be made: {error}. {_LISTED}") from error
    if not isinstance(env, QuantizationEnv):
        raise InputError(f"{id!r} is {type(env).__name__}, no QuantizationEnv. {_LISTED}")
    return env


def open_folder(
    folder: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Make a folder ready for a run before any work is done.

    Args:
        folder: where everything is written.
        settings: what decides the run's outcome; they are kept in ``settings.json``.
        resume: the folder holds a run of the same settings that goes on, or no run yet.
        overwrite: a run that is there already may be thrown away.

    Raises:
        InputError: nothing can be written there, a run is there already, or the settings differ
            from those of the run to be resumed.
    """
    if resume and overwrite:
        raise InputError("give --resume or --overwrite, not both.")
    path, text = folder / "settings.json", json.dumps(dict(settings), indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}.") from error
    if not overwrite and any((folder / name).exists() for name in (path.name, *_FILES)):
        if not resume:
            raise InputError(
                f"{folder} holds a run already: give --resume to go on with it, --overwrite to "
                "throw it away, or another --out."
            )
        _check_same(path, json.loads(text))
        return
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    replace_file(path, text)


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    if not isinstance(kept, dict):
        raise InputError(f"{path} holds no settings of a run.")
    for name in sorted({*kept, *settings}):
        if kept.get(name) != settings.get(name):
            raise InputError(
                f"cannot resume {path.parent}: {name} was {kept.get(name)!r} and is now "
                f"{settings.get(name)!r}."
            )


@dataclass(frozen=True)
class Final:
    """Accuracies of one policy after the final finetuning, one number for each seed, percent."""

    val: tuple[float, ...]
    test: tuple[float, ...]

    def mean_and_error(self, part: str) -> tuple[float, float]:
        """Return the mean over seeds and its standard error (0 for one seed)."""
        values = np.array(getattr(self, part))
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        return float(values.mean()), float(error)

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
    evaluator = task.evaluator
    ranked = sorted(history, key=lambda trial: -trial.accuracy)
    distinct: dict[tuple[str, str], Trial] = {}
    for trial in ranked:  # equally good ones stay in their order: the first is the search's best
        distinct.setdefault((trial.w_bits, trial.a_bits), trial)
    few = list(distinct.values())[:count]
    if len(few) == 1 or not isinstance(evaluator, TrainedEvaluator):
        return few[0]
    return max(few, key=lambda trial: evaluator.final(trial.bits, recipe, seed)["val"])


def finish(
    task: Task, bits: Bits, recipe: Recipe, seeds: tuple[int, ...], network: Path | None = None
) -> Final:
    """Finetune a policy for longer and measure it, once for each seed.

    The seeds should be others than the one of the search, whose luck the search has used up.

    Args:
        task: the problem.
        bits: the policy, int64 [L, 2].
        recipe: the final finetuning.
        seeds: of the order of training images.
        network: file for the finetuned, quantized network of the first seed, see
            `haq_env.quantization.frozen`; None keeps none.
    """
    evaluator = task.evaluator
    if not isinstance(evaluator, TrainedEvaluator):
        raise InputError("only networks that are finetuned here can have a final finetuning.")
    from haq_env.quantization.frozen import save_quantized

    results = []
    for seed in seeds:
        results.append(evaluator.final(bits, recipe, seed))
        if network is not None and seed == seeds[0]:
            about = {**task.settings, "accuracy": results[0], "finetune_seed": seed}
            network.unlink(missing_ok=True)  # it may be of an earlier policy
            try:
                save_quantized(network, evaluator.bench.network, about)
            except InputError as error:  # the policy is what must not be lost
                warnings.warn(f"the network is not written: {error}", stacklevel=2)
    return Final(tuple(r["val"] for r in results), tuple(r["test"] for r in results))


def rows(task: Task, finals: Mapping[str, tuple[Bits, Final]]) -> list[Row]:
    """Build the closing table: the float network, then policies with their costs."""
    evaluator = task.evaluator
    table = []
    if isinstance(evaluator, TrainedEvaluator):
        accuracies = {part: (evaluator.bench.float_accuracy(part), 0.0) for part in ("val", "test")}
        table.append(Row("float", accuracies, {}))
    for name, (bits, final) in finals.items():
        accuracies = {part: final.mean_and_error(part) for part in ("val", "test")}
        table.append(Row(name, accuracies, task.all_costs(bits)))
    return table


def save_policy(
    folder: Path,
    task: Task,
    history: History,
    best: Trial,
    finals: Mapping[str, tuple[Bits, Final]],
    about: Mapping[str, Any],
) -> Path:
    """Write ``policy.json``: the chosen policy with everything needed to repeat it."""
    float_accuracy = task.float_accuracy
    record = {
        "accuracy": {
            "float": float_accuracy,
            "search": best.accuracy,
            "uniform_search": history[0].accuracy,
            "final": {name: final.record() for name, (_, final) in finals.items()},
        },
        "evaluations": len(history),
        **about,
        "versions": versions(),
    }
    path = folder / "policy.json"
    task.policy(best.bits, **record).save(path)
    return path
