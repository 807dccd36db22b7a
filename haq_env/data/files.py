"""Image files, in class folders or in archives of them, and decoding them."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ImageFile:
    """One image that has not been decoded.

    Attributes:
        group: name of its class.
        name: where it is, for errors and for the order.
        read: gives its bytes.
        state: size and time of change; empty in an archive, which has its own.
    """

    group: str
    name: str
    read: Callable[[], bytes]
    state: tuple[int, ...] = ()


@dataclass(frozen=True)
class View:
    """What of an image is looked at: its middle, as is usual for measuring accuracy.

    Attributes:
        resize: length in pixels that the shorter side is brought to.
        size: side of the square that is cut out of the middle, in pixels.
    """

    resize: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise InputError(
                f"images resized to {self.resize} pixels cannot be cut to {self.size}: "
                "1 <= size <= resize."
            )


def class_folders(root: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted: the classes.

    Raises:
        InputError: the folder is missing, cannot be read or has no folders.
    """
    try:
        names = sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise InputError(f"image folder {root} cannot be read: {error.strerror}.") from error
    if not names:
        raise InputError(f"{root} has no class folders: expected {root}/CLASS/IMAGE.jpg.")
    return names


def folder_files(root: Path, groups: Collection[str]) -> list[ImageFile]:
    """List the images of class folders, in the order of their names.

    Raises:
        InputError: a folder is missing, cannot be read or has no images.
    """
    found = []
    for group in sorted(groups):
        try:
            entries = sorted(os.scandir(root / group), key=lambda entry: entry.name)
            images = [e for e in entries if e.name.lower().endswith(SUFFIXES)]
            states = [(e.stat().st_size, e.stat().st_mtime_ns) for e in images]
        except OSError as error:
            raise InputError(
                f"class folder {root / group} cannot be read: {error.strerror}."
            ) from error
        if not images:
            raise InputError(f"class folder {root / group} has no images ({', '.join(SUFFIXES)}).")
        for entry, state in zip(images, states, strict=True):
            path = Path(entry.path)
            found.append(ImageFile(group, str(path), path.read_bytes, state))
    return found


def archive_files(path: Path) -> list[ImageFile]:
    """Read a tar of class folders, compressed or not, once from the beginning to the end.

    Its files are held in memory as they are, which suits archives of small images. Nothing is
    written to the disk.

    Returns:
        The images in the order of class and name; the class is the name of the folder.

    Raises:
        InputError: the archive is missing, damaged or cut short, or has no images.
    """
    found = []
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                group, _, leaf = member.name.rpartition("/")
                if not member.isfile() or not leaf.lower().endswith(SUFFIXES):
                    continue
                content = archive.extractfile(member)
                assert content is not None, "it is a file"
                held = partial(bytes, content.read())
                name = f"{member.name} in {path}"
                found.append(ImageFile(group.rpartition("/")[2], name, held))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(
            f"archive {path} is damaged or cut short ({error}): copy it again."
        ) from error
    except OSError as error:  # gzip reports damage as an OSError without a number
        reason = error.strerror or f"it is damaged ({error}); copy it again"
        raise InputError(f"archive {path} cannot be read: {reason}.") from error
    if not found:
        raise InputError(f"archive {path} has no images in class folders (CLASS/IMAGE.jpg).")
    return sorted(found, key=lambda each: (each.group, each.name))


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits a pixel to 8, which PIL's own conversion would cut off at 255.

    Raises:
        ValueError: its pixels have 32 bits or are floats, and nobody knows what is white.
    """
    if image.mode in ("I", "F"):
        raise ValueError("has pixels of 32 bits or floats: convert it to 8 or 16 bits")
    if not image.mode.startswith("I;16"):
        return image
    from PIL import Image

    return Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8))


def decode(file: ImageFile, view: View | None) -> NDArray[np.uint8]:
    """Decode an image to RGB.

    Args:
        file: the image.
        view: what of it to look at; all of it when None.

    Returns:
        uint8 [3, H, W].

    Raises:
        InputError: the file cannot be read or is no sound image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file.read())) as opened:
            image = eight_bits(opened).convert("RGB")
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        reason = str(error).partition(" <_io")[0] or type(error).__name__
        raise InputError(f"image {file.name} cannot be decoded: {reason}.") from error
    if view is not None:
        from torchvision.transforms import functional as transforms

        image = transforms.center_crop(transforms.resize(image, view.resize), [view.size] * 2)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
