"""CIFAR-10 (Krizhevsky 2009): torchvision's, the binary version, or image files."""

from __future__ import annotations

from collections import Counter
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from haq_env.data.dataset import Dataset
from haq_env.data.decoding import numbered, write_labels, write_split
from haq_env.data.files import ImageFile, archive_files, class_folders, folder_files
from haq_env.data.splits import balanced_order, hold_out
from haq_env.data.store import cache_folder, cached_splits, new_array
from haq_env.errors import InputError

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# Of the 50,000 training images, as everybody uses them.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_BATCHES = "cifar-10-batches-py"  # torchvision's folder
_BINARY = "cifar-10-batches-bin"  # the authors' version for C programs
_RECORD = 1 + 3 * 32 * 32  # bytes: a label and three planes
_WHOLE = 10_000 * _RECORD  # bytes of a file; smaller ones are somebody's sample
_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_LOCK = "download.lock"


def cifar10(root: str | Path | None = None, val: int = 5_000, seed: int = 0) -> Dataset:
    """CIFAR-10: 60,000 colour images of 32 x 32 pixels, 10 classes.

    Args:
        root: folder with ``train.tar.gz`` and ``test.tar.gz`` (``.tgz`` and ``.tar`` will do), or
            with the folders ``train`` and ``test`` of class folders, or with torchvision's
            ``cifar-10-batches-py`` or the authors' ``cifar-10-batches-bin``. None: the folder
            ``cifar10`` in the cache folder, into which torchvision downloads the original if
            there is nothing.
        val: images held out of the 50,000 training images for searching, equally many a class.
        seed: of that choice.

    Returns:
        45,000 images to train on, 5,000 held out, 10,000 to test, mapped from the cache folder;
        the order of each split is shuffled and balanced, so that its first N are a fair sample.
        The same images are held out of the original files and of image files that are numbered
        within their class in the same order.

    Raises:
        InputError: nothing there, damaged, or not ten classes of equally many images.
    """
    folder = (cache_folder() / "cifar10" if root is None else Path(root).expanduser()).resolve()
    if root is None and (not _kind(folder) or (folder / _LOCK).exists()):
        _download(folder)
    kind = _kind(folder)
    if kind in ("torchvision", "binary"):
        paths = sorted((folder / (_BATCHES if kind == "torchvision" else _BINARY)).glob("*batch*"))
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
            f"test.tar.gz, or the folders train and test, or {_BATCHES}, or {_BINARY}."
        )

    def fill(scratch: Path) -> dict[str, Any]:
        write = _write_files if kind in ("archive", "folder") else _write_arrays
        return {
            "source": kind,
            "seed": seed,
            "classes": CLASSES,
            **write(scratch, folder, val, seed),
        }

    # what was decoded of torchvision's files before held other images out
    source = (str(folder.resolve()), kind, val, seed, *(("by class",) * (kind == "torchvision")))
    splits, about = cached_splits("cifar10", source, state, fill)
    again = not {".jpg", ".jpeg"}.isdisjoint(about.get("files", ()))
    note = "CIFAR-10's images, encoded again as JPEG" if again else ""
    return Dataset("cifar10", 10, MEAN, STD, *splits, about=about, note=note)


def _kind(folder: Path) -> str:
    if (folder / _BATCHES).is_dir():
        return "torchvision"
    if (folder / _BINARY).is_dir():
        return "binary"
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
    read = _torchvision if _kind(folder) == "torchvision" else _binary
    counts = {}
    for whole in ("train", "test"):
        images, labels = read(folder, train=whole == "train")
        # Class by class, as the files of class folders are listed: whoever has the images as
        # files holds the same ones out.
        by_class = np.argsort(labels, kind="stable")
        labels = labels[by_class]
        for part, order in _cut(labels, whole, val, seed, f"{folder} ({whole})").items():
            pixels = images[by_class[order]]
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
    try:
        status = path.stat()
    except OSError as error:  # a link to nothing
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    return path.name, status.st_size, status.st_mtime_ns


def _torchvision(folder: Path, *, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from torchvision.datasets import CIFAR10

    try:
        raw = CIFAR10(str(folder), train=train, download=False)  # opens nothing but what it knows
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{folder / _BATCHES} is damaged or not complete: remove it, and it is downloaded anew."
        ) from error
    return raw.data.transpose(0, 3, 1, 2), np.array(raw.targets, dtype=np.int64)


def _binary(folder: Path, *, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
    records = []
    for path in [folder / _BINARY / name for name in names]:
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raw = b""
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        damage = "is cut off" if len(raw) % _RECORD else "" if raw else "is missing or empty"
        if len(raw) == _WHOLE and md5(raw).hexdigest() != _MD5[path.name]:
            damage = "is damaged"  # its MD5 is not that of the authors' file
        if damage:
            raise InputError(f"{path} {damage}: extract the archive again.")
        records.append(np.frombuffer(raw, np.uint8).reshape(-1, _RECORD))
    every = np.concatenate(records)
    labels = every[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        raise InputError(f"{folder / _BINARY} has the label {labels.max()}: it is not CIFAR-10.")
    _check_classes(folder / _BINARY, Counter(CLASSES[label] for label in labels))
    return every[:, 1:].reshape(-1, 3, 32, 32), labels


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
            f"CIFAR-10 cannot be downloaded to {folder} ({reason}). Put {_BATCHES} or {_BINARY} "
            "there, or give the images that you have: dataset='cifar10:FOLDER', with train.tar.gz "
            "and test.tar.gz or the folders train and test in it."
        ) from error
