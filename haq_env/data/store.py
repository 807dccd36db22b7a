"""Decoded images on the disk: made once, mapped into memory in milliseconds ever after."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from haq_env.data.splits import Split
from haq_env.errors import InputError

PARTS = ("train", "val", "test")
_FORMAT = 2  # raise it when what is written changes
_FILES = tuple(f"{part}-{what}.npy" for part in PARTS for what in ("images", "labels"))

# Writes arrays into a folder by `new_array` and returns what there is to say about them.
Fill = Callable[[Path], dict[str, Any]]


class Splits(NamedTuple):
    """The three parts of a data set, in the order of `Dataset`."""

    train: Split
    val: Split
    test: Split


def cache_folder() -> Path:
    """Return the folder of downloads and decoded images: $HAQ_ENV_DATA or ~/.cache/haq_env."""
    given = os.environ.get("HAQ_ENV_DATA")
    return Path(given) if given else Path.home() / ".cache" / "haq_env"


def digest(content: object) -> str:
    """Return 16 hexadecimal digits of what something prints."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def cached_splits(
    name: str, source: object, state: object, fill: Fill
) -> tuple[Splits, dict[str, Any]]:
    """Return the splits of a source from the cache, decoding them first where they are not there.

    Only one process decodes; others wait for it. A folder appears in the cache when it is whole,
    so a killed process leaves nothing that is mistaken for data. What was decoded from an earlier
    state of the same source goes away.

    Args:
        name: of the data set.
        source: where the images come from and how they are looked at and split.
        state: of the source, such as sizes and times: when it changes, the source is decoded anew.
        fill: decodes.

    Returns:
        The splits, mapped copy-on-write, and what `fill` returned.

    Raises:
        InputError: the cache folder cannot be used, or what `fill` raises.
    """
    stem = f"{name}-{digest((_FORMAT, source))}"
    folder = cache_folder() / "decoded"
    path = folder / f"{stem}-{digest(state)}"
    found = _open(path)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{stem}.lock"):
            found = _open(path)  # another process may have been at it
            if found is None:
                for stale in folder.glob(f"{stem}-*"):
                    shutil.rmtree(stale)
                _make(path, fill)
                found = _open(path)
    except OSError as error:
        raise InputError(
            f"the cache folder {folder} cannot be used: {error.strerror or error}. Set "
            "HAQ_ENV_DATA to a folder that can be written and has room."
        ) from error
    assert found is not None, "what has just been written can be read"
    return found


def _make(path: Path, fill: Fill) -> None:
    scratch = path.with_name(path.name + ".part")
    scratch.mkdir()
    try:
        about = fill(scratch)
        about["sha256"] = {part: _sha256(scratch, part) for part in PARTS}
        (scratch / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        scratch.rename(path)
    finally:
        with suppress(OSError):
            shutil.rmtree(scratch, ignore_errors=True)


def new_array(folder: Path, name: str, shape: Iterable[int], dtype: Any) -> np.memmap[Any, Any]:
    """Make an array on the disk, to be filled in place.

    Raises:
        OSError: there is no room.
    """
    shape = tuple(shape)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if shutil.disk_usage(folder).free < size:  # a full disk would kill the process that maps it
        raise OSError(errno.ENOSPC, f"no room for {size / 1e6:,.0f} MB")
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(
        folder / f"{name}.npy", "w+", dtype, shape
    )
    return array


def _open(path: Path) -> tuple[Splits, dict[str, Any]] | None:
    """Map what is there; None if it is missing or damaged."""
    try:
        about = json.loads((path / "about.json").read_text(encoding="utf-8"))
        # Copy-on-write: torch takes no read-only arrays, and nobody can spoil the file.
        arrays = [np.load(path / file, mmap_mode="c") for file in _FILES]
        pairs = zip(arrays[::2], arrays[1::2], strict=True)
        splits = Splits(*(Split(images, np.asarray(labels)) for images, labels in pairs))
    except (OSError, ValueError, EOFError):  # the last for an empty file
        return None
    return splits, about


def _sha256(folder: Path, part: str) -> str:
    sha = hashlib.sha256()
    for what in ("images", "labels"):
        sha.update(np.load(folder / f"{part}-{what}.npy", mmap_mode="r").data)
    return sha.hexdigest()
