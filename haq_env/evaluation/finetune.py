"""Train, finetune and measure: the three loops over images. Nothing global is touched."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq_env.data import Dataset, Split
from haq_env.evaluation.descent import Descent, descend
from haq_env.evaluation.recipe import Recipe
from haq_env.generators import kept_generators
from haq_env.quantization.batchnorm import BATCH, enough_values


class Trainable(Protocol):
    """What the loops need of a network: a torch module has it, a quantized network too."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits, float [n, classes]."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over what is trained."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch to training mode."""
        ...

    def eval(self) -> Any:
        """Switch to evaluation mode."""
        ...


class Images:
    """One split on a device; batches are normalised when they are asked for.

    Args:
        split: images and labels.
        dataset: where the mean and the standard deviation come from.
        device: torch device.
    """

    def __init__(self, split: Split, dataset: Dataset, device: torch.device) -> None:
        self._raw = torch.from_numpy(_own(split.images)).to(device)
        self.labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
        shape = (1, -1, 1, 1)
        self._scale = 1 / (255 * torch.tensor(dataset.std, device=device).view(shape))
        self._shift = -(torch.tensor(dataset.mean) / torch.tensor(dataset.std)).view(shape)
        self._shift = self._shift.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> Tensor:
        """Return normalised images, float32 [n, C, H, W]."""
        return self._raw[index].float().mul_(self._scale).add_(self._shift)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk all images in order."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.batch(part), self.labels[part]


def _own(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy, so that views of every kind and read-only arrays will do; not what a file backs."""
    mapped = isinstance(images, np.memmap) and images.flags.writeable
    return images if mapped and images.flags.c_contiguous else images.copy()


def accuracy(network: Trainable, images: Images) -> float:
    """Measure top-1 in percent; the network is left in evaluation mode."""
    network.eval()
    correct = 0
    with torch.no_grad():
        for batch, labels in images.batches(BATCH):
            correct += int((network(batch).argmax(dim=1) == labels).sum())
    return 100.0 * correct / len(images)


def finetune(
    network: Trainable,
    images: Images,
    recipe: Recipe,
    seed: int,
    after_step: Callable[[], None] | None = None,
) -> float:
    """Train in place by a recipe, in an order of images that the seed alone decides.

    Args:
        network: what to train; left in training mode.
        images: the training images.
        recipe: steps, batch size, learning rate.
        seed: of the order of images, and of dropout where the network has it.
        after_step: called after every step (k-means puts shared weights back together there).

    Returns:
        The mean loss of the last quarter of the steps; NaN without steps.

    Raises:
        InputError: nothing can be trained.
    """
    if not recipe.steps:
        network.train()
        return math.nan
    descent = Descent(network, images, recipe)
    device = images.labels.device
    losses = []
    network.train()
    with dropout_seeded(seed, device), enough_values():
        for step, index in enumerate(batches_of(len(images), recipe, seed)):
            losses.append(descent.push(index.to(device)))
            descend([descent], rate_of(recipe, step))
            if after_step is not None:
                after_step()
    tail = losses[-max(1, len(losses) // 4) :]
    return float(torch.stack(tail).mean())


def parameter_groups(network: Trainable, weight_decay: float) -> list[dict[str, Any]]:
    """Return what an optimizer trains: weights with decay; biases and normalisation without."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others}]


@contextmanager
def dropout_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what dropout draws from; the caller's generators come back on the way out.

    A network's own code may draw from Python's and NumPy's, too.
    """
    # torch.manual_seed would seed accelerators too that are not used here and not put back
    devices = [device] if device.type == "cuda" else []
    with kept_generators(), torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def rate_of(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step: a cosine down to zero."""
    return 0.5 * recipe.learning_rate * (1 + math.cos(math.pi * step / recipe.steps))


def batches_of(count: int, recipe: Recipe, seed: int) -> tuple[Tensor, ...]:
    """Shuffle epochs of image numbers, and cut them into the steps' batches.

    Args:
        count: images in an epoch.
        recipe: steps and batch size.
        seed: of the order.

    Returns:
        int64 [batch size] for every step.
    """
    if not recipe.steps:
        return ()
    needed = recipe.steps * recipe.batch_size
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(count) for _ in range(math.ceil(needed / count))]
    order = torch.from_numpy(np.concatenate(epochs)[:needed])
    return torch.split(order, recipe.batch_size)
