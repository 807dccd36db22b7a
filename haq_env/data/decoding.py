"""Decoding many images into arrays on the disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from haq_env.data.files import ImageFile, View, decode
from haq_env.data.splits import Split
from haq_env.data.store import new_array
from haq_env.errors import InputError

_CHUNK = 256  # images that are decoded and not yet written
_SAMPLE = 5_000  # images that mean and standard deviation are taken of


def write_split(
    folder: Path,
    part: str,
    files: Sequence[ImageFile],
    labels: NDArray[np.int64],
    view: View | None = None,
) -> None:
    """Decode files into ``PART-images.npy`` and ``PART-labels.npy``, on all processors.

    Args:
        folder: where to.
        part: ``"train"``, ``"val"`` or ``"test"``.
        files: the images, in the order of the arrays.
        labels: int64, one for each.
        view: what of each image to look at; all of it when None, and they must be of one size.

    Raises:
        InputError: an image is broken or of another size than the first one.
    """
    first = decode(files[0], view)

    def load(file: ImageFile) -> NDArray[np.uint8]:
        image = decode(file, view)
        if image.shape != first.shape:
            raise InputError(
                f"image {file.name} has {_size(image)} pixels, and {files[0].name} has "
                f"{_size(first)}: give size=N to cut all of them to N x N."
            )
        return image

    images = new_array(folder, f"{part}-images", (len(files), *first.shape), np.uint8)
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        Progress(console=console, transient=True, disable=hidden) as progress,
    ):
        for start in progress.track(range(0, len(files), _CHUNK), description=f"decoding {part}"):
            chunk = files[start : start + _CHUNK]
            for place, image in enumerate(pool.map(load, chunk), start):
                images[place] = image
    images.flush()
    write_labels(folder, part, labels)


def write_labels(folder: Path, part: str, labels: NDArray[np.int64]) -> None:
    """Write ``PART-labels.npy``."""
    array = new_array(folder, f"{part}-labels", labels.shape, np.int64)
    array[:] = labels
    array.flush()


def mean_and_std(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return both per channel on the scale 0 to 1, of the first 5,000 images at most."""
    sums = np.zeros((2, split.images.shape[1]))
    count = min(len(split), _SAMPLE)
    for start in range(0, count, _CHUNK):
        images = split.images[start : min(start + _CHUNK, count)].astype(np.float64) / 255
        sums += images.sum(axis=(0, 2, 3)), (images**2).sum(axis=(0, 2, 3))
    mean, square = sums / (count * split.images[0, 0].size)
    # A channel without any contrast is shifted, not blown up.
    std = np.sqrt(np.maximum(square - mean**2, 0))
    std[std < 1e-3] = 1.0
    return tuple(map(float, mean)), tuple(map(float, std))


def numbered(files: Sequence[ImageFile], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the label of every file, int64 [N]: the place of its class among all."""
    place = {name: index for index, name in enumerate(classes)}
    return np.array([place[file.group] for file in files], dtype=np.int64)


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
