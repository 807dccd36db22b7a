"""CIFAR-10 (Krizhevsky 2009): torchvision's, or image files in folders or archives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from haq_env.data.dataset import Dataset
from haq_env.data.decoding import numbered, write_labels, write_split
from haq_env.data.files import ImageFile, archive_files, class_folders, folder_files
from haq_env.data.splits import balanced_order, hold_out
from haq_env.data.store import cache_folder, kept, new_array
from haq_env.errors import InputError

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# Of the 50,000 training images, as everybody uses them.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_BATCHES = "cifar-10-batches-py"  # torchvision's folder
_LOCK = "download.lock"


def cifar10(root: str | Path | None = None, val: int = 5_000, seed: int = 0) -> Dataset:
    """CIFAR-10: 60,000 colour images of 32 x 32 pixels, 10 classes.

    Args:
        root: folder with ``train.tar.gz`` and ``test.tar.gz`` (``.tgz`` and ``.tar`` will do), or
            with the folders ``train`` and ``test`` of class folders, or with torchvision's
            ``cifar-10-batches-py``. None: the folder ``cifar10`` in the cache folder, into which
            torchvision downloads the original if there is nothing.
        val: images held out of the 50,000 training images for searching, equally many a class.
        seed: of that choice.

    Returns:
        45,000 images to train on, 5,000 held out, 10,000 to test, mapped from the cache folder;
        the order of each split is shuffled and balanced, so that its first N are a fair sample.

    Raises:
        InputError: nothing there, damaged, or not ten classes of equally many images.
    """
    folder = (cache_folder() / "cifar10" if root is None else Path(root)).resolve()
    if root is None and (not _kind(folder) or (folder / _LOCK).exists()):
        _download(folder)
    kind = _kind(folder)
    if kind == "torchvision":
        paths = sorted((folder / _BATCHES).iterdir())
        state: Any = [_stamp(path) for path in paths]
    elif kind == "archive":
        paths = [_archive(folder, part) for part in ("train", "test")]
        state = [_stamp(path) for path in paths]
    elif kind == "folder":
        listed = [_files(folder, part, kind) for part in ("train", "test")]
        state = [(file.name, file.state) for part in listed for file in part]
    else:
        missing = "does not exist" if not folder.exists() else "is not complete"
        raise InputError(
            f"CIFAR-10 folder {root or folder} {missing}: it must hold train.tar.gz and "
            f"test.tar.gz, or the folders train and test, or {_BATCHES}."
        )

    def fill(scratch: Path) -> dict[str, Any]:
        write = _write_arrays if kind == "torchvision" else _write_files
        return {
            "source": kind,
            "seed": seed,
            "classes": CLASSES,
            **write(scratch, folder, val, seed),
        }

    source = (str(folder.resolve()), kind, val, seed)
    splits, about = kept("cifar10", source, state, fill)
    return Dataset("cifar10", 10, MEAN, STD, about=about, **splits)


def _kind(folder: Path) -> str:
    if (folder / _BATCHES).is_dir():
        return "torchvision"
    if all(_archive(folder, part).exists() for part in ("train", "test")):
        return "archive"
    if all((folder / part).is_dir() for part in ("train", "test")):
        return "folder"
    return ""


def _archive(folder: Path, part: str) -> Path:
    paths = [folder / (part + suffix) for suffix in _ARCHIVES]
    return next((path for path in paths if path.exists()), paths[0])


def _files(folder: Path, part: str, kind: str) -> list[ImageFile]:
    if kind == "archive":
        where = _archive(folder, part)
        files = archive_files(where)
    else:
        where = folder / part
        files = folder_files(where, class_folders(where))
    counts = Counter(file.group for file in files)
    _check_classes(where, counts)
    return files


def _check_classes(where: Path, counts: Counter[str]) -> None:
    missing = sorted(set(CLASSES) - set(counts))
    foreign = sorted(set(counts) - set(CLASSES))
    if missing or foreign:
        lacks = f"lacks the classes {', '.join(missing)}" if missing else ""
        has = f"has the folders {', '.join(foreign[:5])}" if foreign else ""
        raise InputError(
            f"{where} {' and '.join(filter(None, (lacks, has)))}: CIFAR-10 has the 10 classes "
            f"{', '.join(CLASSES)}."
        )
    most = max(counts.values())
    for name, count in sorted(counts.items()):
        if count < most:
            raise InputError(
                f"{where} has {count:,} images of class {name!r} and {most:,} of another: it was "
                "extracted or copied only in part."
            )


def _write_files(scratch: Path, folder: Path, val: int, seed: int) -> dict[str, Any]:
    kind = _kind(folder)
    counts = {}
    suffixes: set[str] = set()
    for whole in ("train", "test"):
        files = _files(folder, whole, kind)
        suffixes |= {Path(file.name.partition(" in ")[0]).suffix.lower() for file in files}
        labels = numbered(files, CLASSES)
        for part, order in _cut(labels, whole, val, seed, f"{folder} ({whole})").items():
            write_split(scratch, part, [files[index] for index in order], labels[order])
            counts[part] = len(order)
    return {"files": sorted(suffixes), "counts": counts}


def _write_arrays(scratch: Path, folder: Path, val: int, seed: int) -> dict[str, Any]:
    counts = {}
    for whole in ("train", "test"):
        raw = _torchvision(folder, train=whole == "train")
        labels = np.array(raw.targets, dtype=np.int64)
        for part, order in _cut(labels, whole, val, seed, f"{folder} ({whole})").items():
            pixels: NDArray[np.uint8] = raw.data[order].transpose(0, 3, 1, 2)
            new_array(scratch, f"{part}-images", pixels.shape, np.uint8)[:] = pixels
            write_labels(scratch, part, labels[order])
            counts[part] = len(order)
    return {"files": ["original pixels"], "counts": counts}


def _cut(
    labels: NDArray[np.int64], whole: str, val: int, seed: int, what: str
) -> dict[str, NDArray[np.int64]]:
    if whole == "test":
        return {"test": balanced_order(labels, seed)}
    kept_, held = hold_out(labels, val, seed, what)
    return {"train": kept_, "val": held}


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _torchvision(folder: Path, *, train: bool) -> Any:
    from torchvision.datasets import CIFAR10

    try:
        return CIFAR10(str(folder), train=train, download=False)  # opens nothing but what it knows
    except RuntimeError as error:
        raise InputError(
            f"{folder / _BATCHES} is damaged or not complete: remove it, and it is downloaded anew."
        ) from error


def _download(folder: Path) -> None:
    from torchvision.datasets import CIFAR10

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK):  # what another process writes is not whole yet
            if not _kind(folder):
                CIFAR10(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InputError(
            f"CIFAR-10 cannot be downloaded to {folder} ({reason}). Give the images that you have: "
            "dataset='cifar10:FOLDER', with train.tar.gz and test.tar.gz or the folders train and "
            "test in it."
        ) from error
