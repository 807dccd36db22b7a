"""Holding images out: an order of which every beginning has all classes in proportion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError


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
