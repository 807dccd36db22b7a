"""The digits that come with scikit-learn: a data set without a download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haq_env.data.dataset import Dataset
from haq_env.data.splits import Split


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
    about = {"source": "scikit-learn"}
    return Dataset("digits", 10, (float(mean),), (float(std),), train, val, test, about)


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
