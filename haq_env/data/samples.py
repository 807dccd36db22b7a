"""A user's pairs of image and label, gathered into arrays."""

from __future__ import annotations

import operator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from haq_env.data.splits import Split, balanced_order, is_sorted
from haq_env.errors import InputError, typed_line


class Samples(Protocol):
    """What is needed of a `torch.utils.data.Dataset`: a length and (image, label) pairs."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def gather(name: str, samples: Any, channels: int) -> Split:
    """Gather pairs into a split, mixed by a fixed shuffle if they come sorted by class.

    Args:
        name: of the data set, for errors.
        samples: see `haq_env.data.Dataset.of`.
        channels: of the images.

    Raises:
        InputError: an image or a label cannot be used; the message says which and why.
    """
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
    if not is_sorted(split.labels):
        return split
    order = balanced_order(split.labels, 0)
    return Split(split.images[order], split.labels[order])


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
