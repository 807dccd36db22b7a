"""Folders of class folders: a user's own images, and ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from haq_env.data.dataset import Dataset
from haq_env.data.decoding import mean_and_std, numbered, write_split
from haq_env.data.files import ImageFile, View, class_folders, folder_files
from haq_env.data.splits import balanced_order, hold_out
from haq_env.data.store import cached_splits
from haq_env.errors import InputError

# torchvision's, for all of its ImageNet networks.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HELD_OUT = ("val", "valid", "validation")  # names of a folder of such images


def imagefolder(
    root: str | Path = "",
    size: int | None = None,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Your own images, one folder a class: `imagefolder:FOLDER`.

    Args:
        root: the folder. With folders ``train`` and ``test`` (or ``val``) in it, these are used,
            and with all three ``val`` is what is held out for searching; otherwise its own folders
            are the classes and the test images are taken out of them. ``val`` may be called
            ``valid`` or ``validation``.
        size: the shorter side is resized to it and the middle cut out, in pixels; None for images
            that are all of one size.
        val: share of the training images that is held out for searching, above 0 and below 1,
            where there is no folder for them.
        test: share of all images to test on, where there is no folder for them.
        seed: of both choices.

    Returns:
        The images, mapped from the cache folder; mean and standard deviation are their own.

    Raises:
        InputError: a folder is missing or empty, an image is broken, or sizes differ.
    """
    folder = _checked(root, "imagefolder")
    for name, share in (("val", val), ("test", test)):
        if not isinstance(share, Real) or not 0 < share < 1:
            raise InputError(f"{name} must be a share above 0 and below 1, not {share!r}.")
    if size is not None:
        _check_counts(size=size)
    _check_seed(seed)
    train, *apart = _layout(folder)
    classes = class_folders(train)
    files = folder_files(train, classes)
    kept, others = ([] if each is None else _same_classes(each, classes) for each in apart)
    view = None if size is None else View(size, size)

    def fill(scratch: Path) -> dict[str, Any]:
        pool, rest = files, others
        if not rest:
            labels = numbered(pool, classes)
            left, out = hold_out(labels, round(test * len(pool)), seed, str(train))
            pool, rest = [files[i] for i in sorted(left)], [files[i] for i in out]
        held = max(1, round(val * len(pool)))
        counts = _write(scratch, pool, rest, classes, view, kept or held, None, seed, train)
        return {"source": "folder", "seed": seed, "classes": classes, "counts": counts}

    source = (str(folder.resolve()), size, val, test, seed)
    splits, about = cached_splits("imagefolder", source, _state([*files, *kept, *others]), fill)
    mean, std = mean_and_std(splits.train)
    return Dataset(
        f"imagefolder:{folder.resolve().name}", len(classes), mean, std, *splits, about=about
    )


def imagenet(
    root: str | Path = "",
    classes: int = 100,
    train: int = 20_000,
    val: int = 10_000,
    size: int = 224,
    resize: int | None = None,
    seed: int = 1,
) -> Dataset:
    """ImageNet in torchvision's folder layout: `imagenet:FOLDER`.

    As in HAQ's search, some classes are drawn, and images to train on and to measure on are drawn
    from their training images. Labels stay those of all classes, so that a network of 1,000
    outputs fits. Images are resized and cut once, when they are first read: 150 KB each on the
    disk at 224 pixels.

    Args:
        root: the folder with ``train`` and ``val``, each with one folder a class.
        classes: how many classes to draw; all of them if there are no more.
        train: images to train on; fewer if there are not so many.
        val: images held out for searching; a third of all at most.
        size: side of the square that is cut out of the middle, in pixels.
        resize: length of the shorter side before, in pixels; ``size`` * 256 / 224 when None.
        seed: of the classes and of the images.

    Returns:
        The images, mapped from the cache folder. Those to test are the validation images of the
        drawn classes.

    Raises:
        InputError: a folder is missing or empty, an image is broken, or a number is out of range.
    """
    folder = _checked(root, "imagenet")
    _check_counts(classes=classes, train=train, val=val, size=size)
    _check_seed(seed)
    every = class_folders(folder / "train")
    rng = np.random.default_rng(seed)
    chosen = [every[i] for i in sorted(rng.permutation(len(every))[:classes])]
    files = folder_files(folder / "train", chosen)
    others = folder_files(folder / "val", chosen)
    view = View(round(size * 256 / 224) if resize is None else resize, size)

    def fill(scratch: Path) -> dict[str, Any]:
        held = int(max(1, min(val, len(files) // 3)))
        counts = _write(scratch, files, others, every, view, held, train, seed, folder / "train")
        return {"source": "folder", "seed": seed, "classes": chosen, "counts": counts}

    source = (str(folder.resolve()), classes, train, val, size, view.resize, seed)
    splits, about = cached_splits("imagenet", source, _state([*files, *others]), fill)
    return Dataset("imagenet", len(every), MEAN, STD, *splits, about=about, shows_all_classes=False)


def _check_counts(**numbers: object) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
            raise InputError(f"{name} must be an integer, at least 1, not {number!r}.")


def _check_seed(seed: object) -> None:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed must be an integer, 0 or more, not {seed!r}.")


def _checked(root: str | Path, name: str) -> Path:
    if not str(root):
        raise InputError(f"data set {name!r} needs a folder: write {name}:FOLDER.")
    folder = Path(root).expanduser().resolve()  # one cache, however it is spelled
    if not folder.is_dir():
        raise InputError(f"image folder {root} does not exist or is no folder.")
    return folder


def _layout(folder: Path) -> tuple[Path, Path | None, Path | None]:
    """Find the folders of the images to train on and, if there are, to hold out and to test on."""
    train = folder / "train"
    # "train" without folders in it is a class: of vehicles, say
    if not train.is_dir() or not any(entry.is_dir() for entry in train.iterdir()):
        return folder, None, None
    kept = [each for name in _HELD_OUT if (each := folder / name).is_dir()]
    if len(kept) > 1:
        raise InputError(
            f"{folder} has {kept[0].name} and {kept[1].name}: one of them is too many."
        )
    val, test = next(iter(kept), None), folder / "test"
    return (train, val, test) if test.is_dir() else (train, None, val)


def _same_classes(folder: Path, classes: Sequence[str]) -> list[ImageFile]:
    found = class_folders(folder)
    if found != list(classes):
        odd = sorted(set(found) ^ set(classes))
        raise InputError(
            f"{folder} and {folder.parent / 'train'} must have the same class folders; only in one "
            f"of them: {', '.join(odd[:5])}."
        )
    return folder_files(folder, classes)


def _state(files: Sequence[ImageFile]) -> list[tuple[str, tuple[int, ...]]]:
    return [(file.name, file.state) for file in files]


def _write(
    scratch: Path,
    pool: Sequence[ImageFile],
    tests: Sequence[ImageFile],
    classes: Sequence[str],
    view: View | None,
    held: int | Sequence[ImageFile],
    limit: int | None,
    seed: int,
    where: Path,
) -> dict[str, int]:
    """Split and decode; return how many images each split has.

    Held out are so many of the pool, or images of their own.
    """
    parts: dict[str, list[ImageFile]] = {}
    if isinstance(held, int):
        train, val = hold_out(numbered(pool, classes), held, seed, str(where))
        parts["train"] = [pool[index] for index in train[:limit]]
        parts["val"] = [pool[index] for index in val]
    else:
        parts["train"], parts["val"] = (_mixed(files, classes, seed) for files in (pool, held))
    parts["test"] = _mixed(tests, classes, seed)
    for part, files in parts.items():
        write_split(scratch, part, files, numbered(files, classes), view)
    return {part: len(files) for part, files in parts.items()}


def _mixed(files: Sequence[ImageFile], classes: Sequence[str], seed: int) -> list[ImageFile]:
    return [files[index] for index in balanced_order(numbered(files, classes), seed)]
