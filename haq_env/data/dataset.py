"""Image sets as arrays, with three splits that never mix."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from haq_env.data.splits import balanced_order
from haq_env.errors import InputError, typed_line

_MIXED = 256  # images that clips are found from


class _Samples(Protocol):
    """What is needed of a `torch.utils.data.Dataset`: a length and (image, label) pairs."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels.

    Attributes:
        images: uint8 [N, C, H, W]; in memory, or mapped from a file.
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
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise InputError(f"labels must be integers, not {self.labels.dtype}.")

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """Return the first images, without copying; the built-in sets are in a shuffled order.

        Raises:
            InputError: there are not so many, or the count is below 1.
        """
        if not 1 <= count <= len(self):
            raise InputError(f"count must be 1 to {len(self):,}, not {count:,}.")
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification problem.

    Attributes:
        name: what it is called in reports.
        classes: number of classes.
        mean: per channel, on the scale 0 to 1; subtracted before the network sees an image.
        std: per channel; divided by.
        train: what the network is trained, calibrated and finetuned on, in an order that mixes the
            classes: clips and batch-norm statistics come from the first few hundred images.
        val: held out of all training; what a search measures accuracy on.
        test: touched only by the final evaluation of a found policy.
        about: where the images come from and how they were split, for records.
        note: what has to be said beside an accuracy on these images; empty for most data sets.
        shows_all_classes: False where the images are of a few of the classes only, and labels are
            places among all of them.
    """

    name: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split
    about: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    shows_all_classes: bool = True

    def __post_init__(self) -> None:
        shape = self.input_shape
        if not isinstance(self.classes, int | np.integer) or self.classes < 1:
            raise InputError(
                f"data set {self.name!r}: classes must be a positive integer, not {self.classes!r}."
            )
        for part in ("train", "val", "test"):
            labels = getattr(self, part).labels
            if labels.min() < 0 or labels.max() >= self.classes:
                raise InputError(
                    f"data set {self.name!r}: {part} has labels {labels.min()} to {labels.max()}, "
                    f"but there are {self.classes} classes."
                )
            found = getattr(self, part).images.shape[1:]
            if found != shape:
                raise InputError(
                    f"data set {self.name!r}: {part} has images {list(found)}, and train "
                    f"{list(shape)}."
                )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != shape[0]:
                raise InputError(
                    f"data set {self.name!r}: {name} must be one number for each of {shape[0]} "
                    f"channels, not {len(getattr(self, name))}."
                )
        if not all(0 <= value <= 1 for value in self.mean):
            raise InputError(f"data set {self.name!r}: mean must lie in 0 to 1, not {self.mean}.")
        if not all(0 < value <= 1 for value in self.std):
            raise InputError(
                f"data set {self.name!r}: std must be positive and at most 1, on the scale where "
                f"white is 1, not {self.std}."
            )
        self._check_mixed()

    def _check_mixed(self) -> None:
        if _is_sorted(self.train.labels):
            raise InputError(
                f"data set {self.name!r}: the training images are sorted by class, so what is "
                f"estimated from the first {_MIXED} would be wrong: shuffle them, or use "
                "Dataset.of with pairs of image and label, which does."
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of one image."""
        return self.train.images.shape[1:]

    def __deepcopy__(self, memo: Any) -> Dataset:
        """Return itself: images are never written to, and environments are copied with them."""
        return self

    def digest(self) -> str:
        """Return 16 hexadecimal digits that name the images, labels and splits."""
        sha = hashlib.sha256()
        for part in ("train", "val", "test"):
            split = getattr(self, part)
            sha.update(repr((split.images.shape, split.images.dtype.str)).encode())
            for start in range(0, len(split), 1000):  # mapped images need not fit the memory
                sha.update(split.images[start : start + 1000].tobytes())
            sha.update(split.labels.tobytes())
        return sha.hexdigest()[:16]

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
                normalised), channels first; all of one size. Or two arrays, (images, labels).
                Images may come sorted by class: a fixed shuffle mixes them. A `Split` stays as it
                is, and this one must be mixed.
            val: likewise, held out of training.
            test: likewise, for the final figures only.
            classes: number of classes.
            mean: per channel, on the scale 0 to 1.
            std: per channel.

        Raises:
            InputError: images, labels, mean or std cannot be used; the message says which and why.
        """
        means, stds = _numbers(name, "mean", mean), _numbers(name, "std", std)
        first, second, third = (
            each if isinstance(each, Split) else _gather(name, each, len(means))
            for each in (train, val, test)
        )
        return cls(name, classes, means, stds, first, second, third)


def _numbers(name: str, what: str, values: Any) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"data set {name!r}: {what} must be one number for each channel, not {values!r}."
        ) from error


def _is_sorted(labels: NDArray[np.int64]) -> bool:
    """Tell whether neighbours are of one class far more often than in a mixed order."""
    if len(labels) <= _MIXED:
        return False  # all of them are used
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    mixed = 1 - float((shares**2).sum())  # chance that neighbours differ
    return float((labels[1:] != labels[:-1]).mean()) < 0.25 * mixed


def _pixels(name: str, index: int, image: Any, channels: int) -> Any:
    """Convert an image of PIL in another mode to the channels asked for."""
    from PIL import Image

    from haq_env.data.files import eight_bits

    if not isinstance(image, Image.Image):
        return image
    try:
        return eight_bits(image).convert("L" if channels == 1 else "RGB")
    except ValueError as error:
        raise InputError(f"data set {name!r}: image {index} {error}.") from error


def _pairs(name: str, samples: Any) -> Any:
    """Return what has a length and yields pairs: two arrays are taken side by side."""
    two = isinstance(samples, tuple | list) and len(samples) == 2
    if two and all(hasattr(each, "ndim") for each in samples):
        images, labels = samples
        if labels.ndim != 1 or len(images) != len(labels):
            raise InputError(
                f"data set {name!r}: {len(images)} images, and labels {list(labels.shape)}: there "
                "must be one number for each image."
            )
        return list(zip(images, labels, strict=True))
    if not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")):
        raise InputError(
            f"data set {name!r}: pairs of image and label must have a length and an index, which "
            f"{type(samples).__name__} lacks; of a DataLoader give its data set, not normalised."
        )
    return samples


def _eight_bits(name: str, index: int, image: Any, channels: int) -> NDArray[np.uint8]:
    """Return one image as uint8 [C, H, W]."""
    if hasattr(image, "detach"):  # a tensor, perhaps with gradients or on another device
        image = image.detach().cpu()
    array = np.asarray(_pixels(name, index, image, channels))
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] != channels and array.shape[-1] == channels:
        array = array.transpose(2, 0, 1)  # PIL: channels last
    if array.ndim != 3 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise InputError(
            f"data set {name!r}: image {index} must be uint8 or float, channels x height x width, "
            f"not {array.dtype} {list(array.shape)}."
        )
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 1):  # NaN is not, either
            raise InputError(
                f"data set {name!r}: image {index} has values {array.min():.3g} to "
                f"{array.max():.3g}; float images must lie in 0 to 1, not normalised."
            )
        array = np.rint(array * 255).astype(np.uint8)
    return array


def _gather(name: str, samples: Any, channels: int) -> Split:
    samples = _pairs(name, samples)
    images, labels = [], []
    for index in range(len(samples)):
        try:
            image, label = samples[index]
        except (TypeError, ValueError, LookupError) as error:
            raise InputError(
                f"data set {name!r}: item {index} must be a pair of image and label: "
                f"{typed_line(error)}."
            ) from error
        images.append(_eight_bits(name, index, image, channels))
        try:
            labels.append(operator.index(label))
        except TypeError as error:
            raise InputError(
                f"data set {name!r}: label {index} must be an integer, not {label!r}."
            ) from error
    if not images:
        raise InputError(f"data set {name!r}: a part of it has no images.")
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise InputError(f"data set {name!r}: images must have one shape, not {sorted(shapes)}.")
    split = Split(np.stack(images), np.array(labels, dtype=np.int64))
    if not _is_sorted(split.labels):
        return split
    order = balanced_order(split.labels, 0)
    return Split(split.images[order], split.labels[order])
