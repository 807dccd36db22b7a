"""From names to a task, and to an environment: the only place that knows all registries."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import gymnasium as gym

from haq_env.budget import Budget
from haq_env.cost import UNITS
from haq_env.data import Dataset, load_dataset
from haq_env.errors import InputError, unknown_name
from haq_env.evaluation import RECIPES, Evaluator, Recipe
from haq_env.evaluation.recipe import GRAPHS, INFERENCES, Graphs, Inference
from haq_env.hardware import Hardware
from haq_env.hardware.load import cost_table
from haq_env.layers import LayerTable
from haq_env.networks.bundled import Trained, find_trained
from haq_env.quantization import widths
from haq_env.quantization.scheme import ClipRule
from haq_env.space import BitSpace
from haq_env.task import Task

if TYPE_CHECKING:
    from torch import nn

    from haq_env.env import QuantizationEnv

CLIPS = get_args(ClipRule)
_LISTED = "`haq-env envs` lists the environments."


def make_task(
    network: str | nn.Module = "mobilenet_v1",
    dataset: str | Dataset = "digits",
    hardware: str | Path | Hardware = "bismo-edge",
    *,
    metric: str | None = None,
    budget: float | str = "w3a2",
    bits: Sequence[int] = (2, 8),
    pinned: Sequence[int | str] = (0, -1),
    quantizer: str = "linear",
    clip: ClipRule = "mse",
    evaluator: str | Recipe | Evaluator = "finetune",
    seed: int = 0,
    fill_up: bool = True,
    checkpoint: str | Path | None = None,
    layers: LayerTable | None = None,
    device: str = "cpu",
    cache: str | Path | None = None,
    workers: int = 1,
    reuse: float = 512,
    early_stopping: float | None = None,
    inference: Inference = "float",
    graphs: Graphs = "auto",
) -> Task:
    """Turn names into a task.

    Args:
        network: a built-in network with bundled weights for the data set, the name of any
            network together with a ``checkpoint``, a trained `torch.nn.Module`, or
            ``"package.module:factory"`` that returns one.
        dataset: a name, a `haq_env.data.Dataset` or ``"package.module:factory"``.
        hardware: a name, a TOML, JSON or CSV file, or an object with a ``cost_table`` method.
        metric: what is limited: ``"latency"``, ``"energy"``, ``"size"``, ...; the hardware's
            first choice when None.
        budget: share in (0, 1] of the 8-bit network's cost, or ``"w4a4"`` for that policy's cost.
        bits: smallest and largest width that may be chosen, within 1 to 8.
        pinned: layers that stay at 8 bits, by index or by name: the first and the last, as in HAQ.
            ``()`` pins none.
        quantizer: ``"linear"``, ``"kmeans"`` for weights only, or ``"lsq"`` for learned steps.
        clip: ``"mse"``, ``"haq-kl"`` for HAQ's own rule, ``"max"``, the largest magnitude (of a
            sample, for inputs), or ``"lsq"``; learned steps start there.
        evaluator: a tier (``"finetune"``, ``"ptq_bn"``), a `Recipe` or any `Evaluator`.
        seed: of the finetuning inside every evaluation; only recorded with an evaluator of your
            own, which takes none of the arguments after ``layers``.
        fill_up: spend the slack that HAQ's projection leaves.
        checkpoint: safetensors file with the weights of a named network.
        layers: the layer table, where the network cannot be traced.
        device: torch device of the evaluator.
        cache: SQLite file that keeps the answers of evaluations for other processes and later
            runs; it decides no outcome, and so it is in no record.
        workers: processes that measure a batch of policies side by side, each on one thread.
        reuse: memory in MB for activations that a policy takes over from an earlier one with the
            same first layers, where nothing is finetuned and floats measure; like the cache it
            decides no outcome. 0 switches it off.
        early_stopping: stop measuring a candidate once the upper confidence bound of its accuracy
            is below the best accuracy so far; the number is the chance of being wrong, in
            (0, 0.5]. What was stopped has an estimate for an accuracy, so this is for searching
            and not for figures. None measures every candidate on all images.
        inference: arithmetic that accuracies are measured with: ``"float"``; ``"int8"`` for
            integer kernels, which are several times faster and agree in 99.8 % or more of the
            predictions, or floating point, with a note in the answer, where they do not serve;
            ``"auto"`` for what is faster here.
        graphs: whether a CUDA device measures policies side by side in CUDA graphs: ``"auto"``
            where that gives the answers of one by one and is faster, ``"on"`` also where it is
            slower, or ``"off"``; a note in the answer says why it does not. A CPU has none.

    Raises:
        InputError: something is unknown, or does not fit together; the message says what.
    """
    about: dict[str, Any] = {}
    _check_choices(quantizer, clip, inference, graphs, metric)
    if not isinstance(fill_up, bool):
        raise InputError(f"fill_up must be True or False, not {fill_up!r}.")
    if layers is not None and not isinstance(layers, LayerTable):
        raise InputError(f"layers must be a LayerTable, not {type(layers).__name__}.")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed must be an integer, 0 or more, not {seed!r}.")
    if not isinstance(cache, str | os.PathLike | None):
        raise InputError(f"cache must be the path of a file, not {cache!r}.")
    if isinstance(network, str) and ":" in network and checkpoint is None:
        network, dataset = _users_own(network, dataset)
        about["classes"] = dataset.classes  # what the factory was asked for
    found = find_trained(network, dataset, checkpoint, layers)
    costs = cost_table(hardware, found.layers)
    space = BitSpace.of(found.layers, bits, pinned=pinned, widths=widths(quantizer))
    limit = Budget.of(costs, space, budget, metric, fill_up=fill_up)
    if isinstance(evaluator, str) and evaluator not in RECIPES:
        raise unknown_name("evaluator", evaluator, RECIPES)
    recipe = RECIPES[evaluator] if isinstance(evaluator, str) else evaluator
    options: dict[str, Any] = {
        "device": device,
        "cache": cache,
        "workers": workers,
        "reuse": reuse,
        "early_stopping": early_stopping,
        "inference": inference,
        "graphs": graphs,
    }
    if isinstance(recipe, Recipe):
        measured = _evaluator(recipe, found, network, dataset, quantizer, clip, seed, **options)
    else:
        measured = _users_evaluator(recipe, options)
    settings = {
        "network": found.layers.network,
        "build": dict(found.build),
        "dataset": dataset if isinstance(dataset, str) else dataset.name,
        "dataset_options": dict(found.dataset_options),
        "hardware": costs.hardware,
        "bits": list(space.bits),
        "quantizer": quantizer,
        "clip": clip,
        "evaluator": recipe.name if isinstance(recipe, Recipe) else type(recipe).__name__,
        "fill_up": fill_up,
        "seed": int(seed),
        **about,
    }
    if tuple(pinned) != (0, -1):
        settings["pinned"] = [each if isinstance(each, str) else int(each) for each in pinned]
    if early_stopping is not None:
        settings["early_stopping"] = float(early_stopping)
    if inference != "float":
        settings["inference"] = inference
    return Task(found.layers, costs, limit, space, measured, settings)


def make_env(id: str, **settings: Any) -> QuantizationEnv:
    """Make one of this package's environments, without Gymnasium's wrappers.

    Raises:
        InputError: there is no such environment, or the settings do not fit together.
    """
    from haq_env.env import QuantizationEnv

    try:
        env = gym.make(id, **settings).unwrapped
    except gym.error.NameNotFound as error:  # which may suggest an environment of somebody else
        ours = [name for name in gym.registry if name.startswith("HAQ-")]
        raise unknown_name("environment", id, ours) from error
    except (gym.error.Error, ImportError) as error:
        text = str(error)
        raise InputError(f"{text}{'' if text[-1:] in '.?' else '.'} {_LISTED}") from error
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # another package's, with other settings; or no id
        raise InputError(f"{id!r} cannot be made: {error}. {_LISTED}") from error
    if not isinstance(env, QuantizationEnv):
        raise InputError(f"{id!r} is {type(env).__name__}, no QuantizationEnv. {_LISTED}")
    return env


def _check_choices(
    quantizer: object, clip: object, inference: object, graphs: object, metric: object
) -> None:
    """Refuse names that nothing has."""
    from haq_env.quantization import QUANTIZERS

    choices: tuple[tuple[str, object, Collection[str]], ...] = (
        ("quantizer", quantizer, QUANTIZERS),
        ("clip rule", clip, CLIPS),
        ("inference", inference, INFERENCES),
        ("graphs", graphs, GRAPHS),
        ("metric", metric, UNITS),
    )
    for what, given, known in choices:
        chosen = isinstance(given, str) and given in known
        if not chosen and not (what == "metric" and given is None):
            raise unknown_name(what, given, known)


def _evaluator(
    recipe: Recipe,
    found: Trained,
    network: str | nn.Module,
    dataset: str | Dataset,
    quantizer: str,
    clip: ClipRule,
    seed: int,
    *,
    device: str,
    cache: str | Path | None,
    workers: int,
    reuse: float,
    early_stopping: float | None,
    inference: Inference,
    graphs: Graphs,
) -> Evaluator:
    """Build this package's own evaluator of trained networks."""
    from haq_env.evaluation.bench import Subject
    from haq_env.evaluation.cache import EvaluationCache
    from haq_env.evaluation.stopping import EarlyStopping
    from haq_env.evaluation.trained import TrainedEvaluator

    if not isinstance(device, str):
        raise InputError(f"device must be a name such as 'cpu' or 'cuda', not {device!r}.")
    if not _is_number(reuse) or reuse < 0:
        raise InputError(f"reuse must be a number of MB, 0 or more, not {reuse!r}.")
    if early_stopping is not None and not _is_number(early_stopping):
        raise InputError(f"early_stopping must be a number or None, not {early_stopping!r}.")
    subject = Subject(
        network=_apart(network),
        dataset=dataset,
        layers=found.layers,
        checkpoint=found.checkpoint,
        build=found.build,
        dataset_options=found.dataset_options,
        quantizer=quantizer,
        clip=clip,
        device=device,
        inference=inference,
        graphs=graphs,
    )
    return TrainedEvaluator(
        subject,
        recipe,
        seed,
        None if cache is None else EvaluationCache(cache),
        workers=workers,
        reuse_bytes=int(reuse * 2**20),
        stopping=None if early_stopping is None else EarlyStopping(early_stopping),
    )


def _users_evaluator(evaluator: Any, options: Mapping[str, Any]) -> Evaluator:
    """Check an evaluator of the user's own, which the options of ours do not reach."""
    if isinstance(evaluator, type) or not isinstance(evaluator, Evaluator):
        raise InputError(
            "evaluator must be the name of a tier, a Recipe or an object with float_accuracy and "
            f"evaluate(bits), not {evaluator!r}."
        )
    defaults = inspect.signature(make_task).parameters
    given = [name for name, value in options.items() if value != defaults[name].default]
    if given:
        raise InputError(
            f"{', '.join(given)}: an evaluator of your own ({type(evaluator).__name__}) decides "
            "that itself; only the name of a tier or a Recipe takes it."
        )
    return evaluator


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _apart(network: str | nn.Module) -> str | nn.Module:
    """Copy a network that its owner may go on training."""
    if isinstance(network, str):
        return network
    from haq_env.networks.copying import copied

    return copied(network)


def _users_own(address: str, dataset: str | Dataset) -> tuple[nn.Module, Dataset]:
    """Import a user's trained network, built for the data set's images and classes."""
    from haq_env.networks import load_network

    data = load_dataset(dataset)
    channels, side, _ = data.input_shape
    module = load_network(address, classes=data.classes, image_size=side, in_channels=channels)
    return module, data
