"""Image sets as arrays, with three splits that never mix."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from haq_env.data.overlap import warn_of_overlap
from haq_env.data.samples import Samples, gather
from haq_env.data.splits import MIXED, Split, is_sorted
from haq_env.errors import InputError


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
        object.__setattr__(self, "classes", int(self.classes))  # NumPy's fit in no JSON
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
        if is_sorted(self.train.labels):
            raise InputError(
                f"data set {self.name!r}: the training images are sorted by class, so what is "
                f"estimated from the first {MIXED} would be wrong: shuffle them, or use "
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
        train: Samples | Split,
        val: Samples | Split,
        test: Samples | Split,
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

        Warns where splits share images.
        """
        means, stds = _numbers(name, "mean", mean), _numbers(name, "std", std)
        first, second, third = (
            each if isinstance(each, Split) else gather(name, each, len(means))
            for each in (train, val, test)
        )
        data = cls(name, classes, means, stds, first, second, third)
        warn_of_overlap(data)
        return data


def _numbers(name: str, what: str, values: Any) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"data set {name!r}: {what} must be one number for each channel, not {values!r}."
        ) from error
