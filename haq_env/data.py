"""Image sets, held in memory as arrays, with three splits that never mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError
from haq_env.imports import import_address
from haq_env.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "digits": "haq_env.data:digits",
    },
)


class _Samples(Protocol):
    """What is needed of a `torch.utils.data.Dataset`: a length and (image, label) pairs."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Split:
    """Images and labels.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], from 0.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise InputError(
                f"images must be uint8 [N, C, H, W], not {self.images.dtype} "
                f"{list(self.images.shape)}."
            )
        if self.labels.shape != (len(self.images),) or not len(self.images):
            raise InputError(
                f"labels must be one number for each of the {len(self.images)} images (at least "
                f"one), not {list(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A classification problem.

    Attributes:
        name: what it is called in reports.
        classes: number of classes.
        mean: per channel, on the scale 0 to 1; subtracted before the network sees an image.
        std: per channel; divided by.
        train: what the network is trained, calibrated and finetuned on.
        val: held out of all training; what a search measures accuracy on.
        test: touched only by the final evaluation of a found policy.
    """

    name: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split

    def __post_init__(self) -> None:
        for part in ("train", "val", "test"):
            labels = getattr(self, part).labels
            if labels.min() < 0 or labels.max() >= self.classes:
                raise InputError(
                    f"data set {self.name!r}: {part} has labels {labels.min()} to {labels.max()}, "
                    f"but there are {self.classes} classes."
                )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of one image."""
        return self.train.images.shape[1:]

    @classmethod
    def of(
        cls,
        name: str,
        train: _Samples | Split,
        val: _Samples | Split,
        test: _Samples | Split,
        *,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> Dataset:
        """Hold a user's data sets in memory.

        Args:
            name: what to call it in reports.
            train: a `Split`, or pairs of an image and a label such as a torchvision data set
                yields them: PIL images, uint8 arrays, or float arrays from 0 to 1 (not yet
                normalised), channels first; all of one size.
            val: likewise, held out of training.
            test: likewise, for the final figures only.
            classes: number of classes.
            mean: per channel, on the scale 0 to 1.
            std: per channel.
        """
        parts = [
            s if isinstance(s, Split) else _gather(name, s, len(mean)) for s in (train, val, test)
        ]
        return cls(name, classes, tuple(mean), tuple(std), *parts)


def _gather(name: str, samples: _Samples, channels: int) -> Split:
    images, labels = [], []
    for index in range(len(samples)):
        image, label = samples[index]
        array = np.asarray(image)
        if array.ndim == 2:
            array = array[None]
        elif array.shape[0] != channels and array.shape[-1] == channels:  # PIL: channels last
            array = array.transpose(2, 0, 1)
        if array.dtype != np.uint8:
            if array.min() < 0 or array.max() > 1:
                raise InputError(
                    f"data set {name!r}: image {index} has values {array.min():.3g} to "
                    f"{array.max():.3g}; float images must lie in 0 to 1, not normalised."
                )
            array = np.rint(array * 255).astype(np.uint8)
        images.append(array)
        labels.append(int(label))
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise InputError(f"data set {name!r}: images must have one shape, not {sorted(shapes)}.")
    return Split(np.stack(images), np.array(labels, dtype=np.int64))


def digits(size: int = 16) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits (UCI, 8 x 8, 16 grey levels).

    Args:
        size: side of the images in pixels; 8 is the original, larger ones are interpolated.

    Returns:
        897 images to train on, 450 held out for searching, 450 to test; the split is fixed.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = _enlarge(raw.images.astype(np.float64) / 16, size)
    pixels = np.rint(images * 255).astype(np.uint8)[:, None]
    labels = raw.target.astype(np.int64)
    # Writers follow each other in the file; a fixed shuffle gives every split all of them.
    order = np.random.default_rng(0).permutation(len(labels))
    parts = np.split(order, [897, 1347])
    train, val, test = (Split(pixels[part], labels[part]) for part in parts)
    mean, std = train.images.mean() / 255, train.images.std() / 255
    return Dataset("digits", 10, (float(mean),), (float(std),), train, val, test)


def _enlarge(images: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Resize square images [N, S, S] bilinearly, pixel centres aligned."""
    side = images.shape[1]
    if size == side:
        return images
    at = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, side - 1)
    share = at - low
    weights = np.zeros((size, side))
    weights[np.arange(size), low] += 1 - share
    weights[np.arange(size), high] += share
    return np.asarray(weights @ images @ weights.T)


def load_dataset(dataset: str | Dataset, **options: Any) -> Dataset:
    """Return a data set.

    Args:
        dataset: a name in `DATASETS`; ``"package.module:factory"``, where the factory returns a
            `Dataset`; or a `Dataset`, returned as it is.
        **options: keyword arguments of the named loader.

    Raises:
        InputError: unknown name, or what it names is no data set.
    """
    if isinstance(dataset, Dataset):
        return dataset
    factory = import_address("data set", dataset) if ":" in dataset else DATASETS[dataset]
    loaded = factory(**options) if callable(factory) else factory
    if not isinstance(loaded, Dataset):
        raise InputError(f"data set {dataset!r} is {type(loaded).__name__}, not a Dataset.")
    return loaded
