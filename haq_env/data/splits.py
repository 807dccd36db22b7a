"""Images with labels, and an order of which every beginning has all classes in proportion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError

MIXED = 256  # images that clips are found from


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


def is_sorted(labels: NDArray[np.int64]) -> bool:
    """Tell whether neighbours are of one class far more often than in a mixed order."""
    if len(labels) <= MIXED:
        return False  # all of them are used
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    mixed = 1 - float((shares**2).sum())  # chance that neighbours differ
    return float((labels[1:] != labels[:-1]).mean()) < 0.25 * mixed


def balanced_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Shuffle images so that every beginning and every end holds the classes in proportion.

    Splits are then cuts of the order, and the first images of a split are a fair sample of it.

    Args:
        labels: int64 [N].
        seed: of the shuffle.

    Returns:
        Image numbers, int64 [N]. They depend on the labels and the seed alone.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[rng.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((rng.permutation(len(labels)), place)).astype(np.int64)


def hold_out(
    labels: NDArray[np.int64], held: int, seed: int, what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images into those to train on and those held out.

    Args:
        labels: int64 [N].
        held: how many to hold out.
        seed: of the division.
        what: whose images, for the error.

    Returns:
        Numbers of the images to train on, and of those held out.

    Raises:
        InputError: a part would be empty.
    """
    if not 1 <= held < len(labels):
        raise InputError(
            f"{what} has {len(labels):,} images; {held:,} of them cannot be held out with some "
            "left to train on."
        )
    order = balanced_order(labels, seed)
    return order[held:], order[:held]
