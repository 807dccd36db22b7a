"""What an evaluation works with: network, images, and the ways of measuring one policy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq_env.data import Dataset, load_dataset
from haq_env.errors import InputError
from haq_env.evaluation.checks import check_fits, check_weights, warn_of_batches
from haq_env.evaluation.device import find_device
from haq_env.evaluation.recipe import Recipe
from haq_env.evaluation.stopping import EarlyStopping, Score, count
from haq_env.layers import LayerTable
from haq_env.networks.bundled import check_size
from haq_env.policy import Bits

if TYPE_CHECKING:
    from torch import nn

    from haq_env.evaluation.finetune import Images
    from haq_env.evaluation.prefix import PrefixReuse
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
        quantizer: ``"linear"``, ``"kmeans"`` or ``"lsq"``.
        clip: rule for clipping: ``"mse"``, ``"haq-kl"``, ``"max"`` or ``"lsq"``.
        device: torch device.
        inference: what measures the accuracy: ``"float"``, ``"int8"`` or ``"auto"``, see
            `haq_env.evaluation.inference`.
        graphs: whether policies are measured side by side in CUDA graphs: ``"auto"``, ``"on"`` or
            ``"off"``, see `haq_env.evaluation.cuda_graphs`.
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
    inference: str = "float"
    graphs: str = "auto"


class Bench:
    """What an evaluation needs in memory.

    Args:
        subject: network, data and quantizer.
        reuse_bytes: memory for what policies that begin alike share; 0 for nothing.
        stopping: when candidates are given up early; None for never.

    Attributes:
        device: where it computes.
        images: the splits ``"train"``, ``"val"`` and ``"test"``.
        network: the quantized network; every measurement leaves it as it was used.
        inference: the arithmetic that accuracies are measured with.
        stopping: as given.
        note: on how the latest accuracy was measured; empty where there is nothing to say.

    Raises:
        InputError: network, weights, images and device do not go together.
    """

    def __init__(
        self, subject: Subject, reuse_bytes: int = 0, stopping: EarlyStopping | None = None
    ) -> None:
        from haq_env.evaluation.finetune import Images
        from haq_env.evaluation.inference import InferenceChoice
        from haq_env.quantization.network import QuantizedNetwork

        self.device = device = find_device(subject.device)
        data = load_dataset(subject.dataset, **dict(subject.dataset_options))
        self.images: dict[str, Images] = {
            part: Images(getattr(data, part), data, device) for part in ("train", "val", "test")
        }
        check_weights(subject, data)
        if isinstance(subject.network, str):  # others were traced with these images
            check_size(subject.layers, data)
        module = _float_module(subject).to(device)
        sample = self.images["train"].batch(slice(0, 256))
        check_fits(module, data, sample[:1].clone())  # a forward may write into it
        warn_of_batches(module)
        self.network: QuantizedNetwork = QuantizedNetwork(
            module,
            subject.layers,
            quantizer=subject.quantizer,
            clip=subject.clip,
            calibration_images=sample,
        )
        self.inference = InferenceChoice(
            self.network, subject.inference, sample[:128], len(self.images["val"])
        )
        if subject.inference == "int8" and self.inference.name == "float":
            warnings.warn(
                f"int8 was asked for: {self.inference.note}", RuntimeWarning, stacklevel=2
            )
        self.note = ""
        self.stopping = stopping
        self._reuse_bytes = reuse_bytes
        self._float: dict[str, float] = {}
        self._classes = data.classes
        self._prefixes: dict[Recipe, PrefixReuse | None] = {}

    def float_accuracy(self, part: str) -> float:
        """Accuracy of the float network as it was given, in percent."""
        if part not in self._float:
            self._float[part] = self.measure(None, None, 0, (part,))[part]
            if self._float[part] <= 100 / self._classes < 100:
                warnings.warn(
                    f"the float network is right for {self._float[part]:.1f} % of the {part} "
                    f"images, no more than chance among {self._classes} classes: do mean, std and "
                    "the order of the labels fit it?",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return self._float[part]

    def measure(
        self, bits: Bits | None, recipe: Recipe | None, seed: int, parts: tuple[str, ...]
    ) -> dict[str, float]:
        """Run one evaluation; a recipe of None measures what is there."""
        from haq_env.evaluation.finetune import accuracy

        self._prepare(bits, recipe, seed)
        network, self.note = self.inference.serving()
        return {part: accuracy(network, self.images[part]) for part in parts}

    def judge(self, bits: Bits, recipe: Recipe, seed: int, score: Score) -> float:
        """Measure a candidate on the held-out images, and do not do more than is needed.

        Args:
            bits: int64 [L, 2].
            recipe: the finetuning.
            seed: of the order of training images.
            score: where right answers are counted, with this bench's early stopping.

        Returns:
            Top-1 in percent; an estimate if the score says that it stopped.
        """
        prefixes = self.prefixes(recipe)
        if prefixes is not None:
            self.network.restore()
            self.network.set_policy(bits)
            prefixes.measure(bits, score)
            self.note = self.inference.note
            return score.accuracy
        if score.stopping is None:
            return self.measure(bits, recipe, seed, ("val",))["val"]
        self._prepare(bits, recipe, seed)
        network, self.note = self.inference.serving()
        count(network, score.stopping.batches(self.images["val"]), score)
        return score.accuracy

    def shares(self, recipe: Recipe) -> bool:
        """Tell whether policies that begin alike share their beginnings, if the network allows."""
        return bool(self._reuse_bytes) and not recipe.steps and self.inference.name == "float"

    def prefixes(self, recipe: Recipe) -> PrefixReuse | None:
        """Return what runs policies from where they part, or None where they share nothing."""
        if not self.shares(recipe):
            return None
        from haq_env.evaluation.chain import NotAChain
        from haq_env.evaluation.prefix import PrefixReuse

        if recipe not in self._prefixes:
            try:
                self._prefixes[recipe] = PrefixReuse.of(
                    self.network, self.images, recipe.bn_images, self.stopping, self._reuse_bytes
                )
            except NotAChain:
                self._prefixes[recipe] = None
        return self._prefixes[recipe]

    def _prepare(self, bits: Bits | None, recipe: Recipe | None, seed: int) -> None:
        """Leave the network as a policy and its recipe make it."""
        from haq_env.evaluation.finetune import finetune

        network = self.network
        network.restore()
        network.set_policy(bits)
        if recipe is not None:
            train = self.images["train"]
            if recipe.steps:
                finetune(network, train, recipe, seed, network.after_step)
            network.recalibrate_batchnorm(train.batch(slice(0, recipe.bn_images)))


def _float_module(subject: Subject) -> nn.Module:
    if not isinstance(subject.network, str):
        from haq_env.networks.copying import copied

        return copied(subject.network)  # the user's own stays on its device
    from haq_env.networks import load_network
    from haq_env.networks.checkpoint import load_checkpoint

    if subject.checkpoint is None:
        raise InputError(f"network {subject.network!r} has no trained weights to be evaluated.")
    module = load_network(subject.network, **dict(subject.build))
    load_checkpoint(subject.checkpoint, module)
    return module
