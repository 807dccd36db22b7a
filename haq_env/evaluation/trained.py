"""The evaluator of real networks: restore, set bits, finetune, recalibrate, measure."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haq_env.data import Dataset, load_dataset
from haq_env.errors import InputError
from haq_env.evaluation.recipe import RECIPES, Evaluation, Recipe
from haq_env.layers import LayerTable
from haq_env.policy import Bits, as_bits

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from haq_env.evaluation.cache import EvaluationCache, Origin
    from haq_env.evaluation.finetune import Images
    from haq_env.quantization.network import QuantizedNetwork
    from haq_env.quantization.scheme import ClipRule


@dataclass(frozen=True)
class Subject:
    """The float network that policies are tried on, by name or as objects.

    Attributes:
        network: a name of `haq_env.networks` or a trained module.
        dataset: a name of `haq_env.data` or a data set.
        layers: the network's layers.
        checkpoint: weights for a named network (safetensors).
        build: keyword arguments for building a named network.
        dataset_options: keyword arguments for loading a named data set.
        quantizer: ``"linear"`` or ``"kmeans"``.
        clip: rule for clipping: ``"mse"`` or ``"haq-kl"``.
        device: torch device.
    """

    network: str | nn.Module
    dataset: str | Dataset
    layers: LayerTable
    checkpoint: Path | None = None
    build: tuple[tuple[str, Any], ...] = ()
    dataset_options: tuple[tuple[str, Any], ...] = ()
    quantizer: str = "linear"
    clip: ClipRule = "mse"
    device: str = "cpu"


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

    Attributes:
        evaluations: how many evaluations were asked for, remembered ones included.
        seconds: time spent on the ones that were not remembered.
    """

    def __init__(
        self,
        subject: Subject,
        recipe: Recipe,
        seed: int = 0,
        cache: EvaluationCache | None = None,
    ) -> None:
        self.subject = subject
        self.recipe = recipe
        self.seed = seed
        self.cache = cache
        self.evaluations = 0
        self.seconds = 0.0
        self._remembered: dict[bytes, float] = {}
        self._bench: _Bench | None = None
        self._fingerprint = ""
        if subject.device != "cpu":
            _device(subject.device)  # a wrong one is an error now, not at the first evaluation

    @property
    def float_accuracy(self) -> float:
        """Top-1 of the float network on the held-out images, in percent."""
        return self.bench.float_accuracy("val")

    def evaluate(self, bits: Bits) -> Evaluation:
        """Measure a policy, int64 [L, 2], on the held-out images.

        Raises:
            InputError: wrong shape, or bits that this quantizer does not define.
        """
        bits = as_bits(bits, len(self.subject.layers))
        key = _key(bits)
        self.evaluations += 1
        if key in self._remembered:
            return Evaluation(self._remembered[key], 0.0, cache_hit=True)
        found = None if self.cache is None else self.cache.get(self._address(key))
        if found is not None:
            self._remembered[key] = found
            return Evaluation(found, 0.0, cache_hit=True)
        start = time.perf_counter()
        result = self.bench.measure(bits, self.recipe, self.seed, ("val",))["val"]
        seconds = time.perf_counter() - start
        self.seconds += seconds
        if self.cache is not None:
            result = self.cache.put(self._address(key), result, seconds, bits, self._origin())
        self._remembered[key] = result
        return Evaluation(result, seconds)

    def remember(self, bits: Bits, accuracy: float) -> None:
        """Keep the accuracy of a policy, int64 [L, 2], that an earlier run measured."""
        self._remembered[_key(bits)] = accuracy

    def final(self, bits: Bits | None, recipe: Recipe, seed: int) -> dict[str, float]:
        """Measure a policy after another, usually longer finetuning.

        Args:
            bits: int64 [L, 2], or None for the float network, finetuned alike.
            recipe: the finetuning.
            seed: of the order of training images.

        Returns:
            Top-1 in percent by split: ``"val"`` and ``"test"``.
        """
        return self.bench.measure(bits, recipe, seed, ("val", "test"))

    @property
    def bench(self) -> _Bench:
        """Network and images, loaded at the first use."""
        if self._bench is None:
            self._bench = _Bench(self.subject)
        return self._bench

    def _address(self, key: bytes) -> str:
        """Return where the cache keeps a policy; everything but the policy is read only once."""
        from haq_env.evaluation.fingerprint import digest, fingerprint

        if not self._fingerprint:
            bench, settings = self.bench, (self.subject.clip, self.recipe, self.seed)
            self._fingerprint = fingerprint(bench.network, bench.images, settings)
        return digest([(self._fingerprint, key)])

    def _origin(self) -> Origin:
        from haq_env.evaluation.cache import Origin

        subject = self.subject
        data = subject.dataset
        return Origin(
            network=subject.layers.network,
            dataset=data if isinstance(data, str) else data.name,
            quantizer=subject.quantizer + (f" {subject.clip}" if subject.clip != "mse" else ""),
            recipe=_recipe_name(self.recipe),
            seed=str(self.seed),
        )

    def __getstate__(self) -> dict[str, Any]:
        # the fingerprint is of the bench and of this process
        return {**self.__dict__, "_bench": None, "_fingerprint": ""}


class _Bench:
    """What an evaluation needs in memory."""

    def __init__(self, subject: Subject) -> None:
        from haq_env.evaluation.finetune import Images
        from haq_env.quantization.network import QuantizedNetwork

        device = _device(subject.device)
        data = load_dataset(subject.dataset, **dict(subject.dataset_options))
        self.images: dict[str, Images] = {
            part: Images(getattr(data, part), data, device) for part in ("train", "val", "test")
        }
        module = _float_module(subject).to(device)
        sample = self.images["train"].batch(slice(0, 256))
        _check_fits(module, data, sample[:1])
        self.network: QuantizedNetwork = QuantizedNetwork(
            module,
            subject.layers,
            quantizer=subject.quantizer,
            clip=subject.clip,
            calibration_images=sample,
        )
        self._float: dict[str, float] = {}

    def float_accuracy(self, part: str) -> float:
        """Accuracy of the float network as it was given, in percent."""
        if part not in self._float:
            self._float[part] = self.measure(None, None, 0, (part,))[part]
        return self._float[part]

    def measure(
        self, bits: Bits | None, recipe: Recipe | None, seed: int, parts: tuple[str, ...]
    ) -> dict[str, float]:
        """Run one evaluation; a recipe of None measures what is there."""
        from haq_env.evaluation.finetune import accuracy, finetune

        network = self.network
        network.restore()
        network.set_policy(bits)
        if recipe is not None:
            train = self.images["train"]
            if recipe.steps:
                finetune(network, train, recipe, seed, network.after_step)
            network.recalibrate_batchnorm(train.batch(slice(0, recipe.bn_images)))
        return {part: accuracy(network, self.images[part]) for part in parts}


def _recipe_name(recipe: Recipe) -> str:
    for name, known in RECIPES.items():
        if recipe == known:
            return name
    special = [f for f in fields(recipe) if getattr(recipe, f.name) != f.default]
    return ", ".join(f"{f.name}={getattr(recipe, f.name)}" for f in special)


def _key(bits: Bits) -> bytes:
    return bits.astype(np.uint8).tobytes()


def _device(name: str) -> torch.device:
    import torch

    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"torch device {name!r} cannot be used: {reason}") from error


def _check_fits(module: nn.Module, data: Dataset, image: Tensor) -> None:
    """See that the network takes the images and has an output for every class."""
    import torch

    from haq_env.networks.graphs import evaluation_mode

    try:
        with torch.no_grad(), evaluation_mode(module):
            logits = module(image)
    except RuntimeError as error:
        raise InputError(
            f"the network cannot be run on images {list(data.input_shape)} of data set "
            f"{data.name!r}: {str(error).splitlines()[0]}"
        ) from error
    if not torch.is_tensor(logits) or logits.ndim != 2 or logits.shape[1] < data.classes:
        found = list(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
        raise InputError(
            f"the network must answer [1, classes] logits for an image; data set {data.name!r} "
            f"has {data.classes} classes, but the answer is {found}."
        )


def _float_module(subject: Subject) -> nn.Module:
    if not isinstance(subject.network, str):
        return subject.network
    from haq_env.networks import load_network
    from haq_env.networks.checkpoint import load_checkpoint

    if subject.checkpoint is None:
        raise InputError(f"network {subject.network!r} has no trained weights to be evaluated.")
    module = load_network(subject.network, **dict(subject.build))
    load_checkpoint(subject.checkpoint, module)
    return module
