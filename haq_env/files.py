"""Writing files so that a reader never sees half of one, and a failure is one clear error."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from haq_env.errors import InputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the failure to write a file into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder, and those above it, where they are missing, and return its path.

    Raises:
        InputError: it cannot be made, or is a file.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror or error}.") from error
    return path


def replace_file(
    path: Path,
    content: str | bytes | memoryview,
    *,
    durable: bool = True,
    folders: bool = False,
) -> None:
    """Write a file in one step; what was there stays if that fails.

    Args:
        path: the file.
        content: all of it; text is written as UTF-8, line ends as they are.
        durable: also survives a power cut, which takes some milliseconds.
        folders: makes the folders that it is in; else they must exist.

    Raises:
        InputError: it cannot be written.
    """
    replace_files({path: content}, durable=durable, folders=folders)


def replace_files(
    contents: Mapping[Path, str | bytes | memoryview],
    *,
    durable: bool = True,
    folders: bool = False,
) -> None:
    """Write files that belong together: all of them, or none where the disk is full in between.

    All are written beside their targets before the first one is renamed. A power cut between two
    of the renames, which take microseconds, is the one moment that can part them.

    Args:
        contents: path to all of its content; text is written as UTF-8, line ends as they are.
        durable: also survives a power cut, which takes some milliseconds a file.
        folders: makes the folders that they are in; else they must exist.

    Raises:
        InputError: one cannot be written; what was there stays.
    """
    scratches: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            if not path.name:
                raise InputError(f"cannot write {path}: it is a folder.")
            scratches[path] = path.with_name(f".{path.name}.{os.getpid()}.part")
            with writing(path):
                if folders:
                    path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    raise IsADirectoryError(f"{path} is a folder")
                if path.exists() and not path.is_file():  # root could replace /dev/null
                    raise OSError(errno.EINVAL, "it is a device or a pipe, and no file")
                _write(scratches[path], content, durable)
        for path, scratch in scratches.items():
            with writing(path):
                scratch.replace(path)
    finally:
        for scratch in scratches.values():
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)


def _write(scratch: Path, content: str | bytes | memoryview, durable: bool) -> None:
    data = content.encode("utf-8") if isinstance(content, str) else content
    # in a folder that others write into, a link may wait here: never written through
    scratch.unlink(missing_ok=True)
    with scratch.open("xb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
