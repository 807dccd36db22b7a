"""Reading files that anybody may have written: bounded, JSON only, every field checked."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from haq_env.errors import InputError

LARGEST_INTEGER = 2**53  # beyond it, other readers of JSON lose digits


def read_text(folder: Path, name: str, most: int) -> str:
    """Read a file of a folder without following a link and without reading too much.

    Args:
        folder: where it is.
        name: of the file, no path.
        most: bytes that it may have.

    Raises:
        InputError: it is missing, too large, a link, no plain file or no UTF-8.
    """
    path = folder / name
    # without NONBLOCK, opening a pipe would wait for somebody to write
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if path.is_symlink():
            raise InputError(f"{path} is a link, which may leave the folder: give the file itself.")
        with os.fdopen(os.open(path, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise InputError(f"{path} is no plain file.")
            if about.st_size > most:
                raise InputError(
                    f"{path} has {about.st_size:,} bytes, and at most {most:,} are read."
                )
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    if len(content) > most:
        raise InputError(f"{path} grows while it is read; at most {most:,} bytes are.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}.") from error


def parse(text: str, where: str) -> Any:
    """Read strict JSON: no NaN, no infinity, no key twice, no bottomless nesting.

    Raises:
        InputError: it is something else, or cut off.
    """
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{where} is no complete JSON: {reason}. Was it cut off?") from error


class Fields:
    """The fields of a JSON object, taken out one by one with their checks.

    Args:
        value: what was parsed.
        where: what error messages call it.

    Raises:
        InputError: it is no object; every method raises it for a field that is missing or wrong.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise InputError(f"{where} must be a JSON object.")
        self._left: dict[str, Any] = dict(value)
        self._where = where

    def text(self, name: str, *, longest: int = 200, pattern: str | None = None) -> str:
        """Take a text of printable characters."""
        return self._text(self._take(name), name, longest, pattern)

    def text_or_none(self, name: str, pattern: str) -> str | None:
        """Take a text of a form that may be null, or not there at all."""
        value = self._left.pop(name, None)
        return None if value is None else self._text(value, name, 200, pattern)

    def texts(self, name: str, *, most: int = 50, longest: int = 200) -> tuple[str, ...]:
        """Take a list of texts."""
        return tuple(self._text(each, name, longest, None) for each in self.items(name, most))

    def table(self, name: str, *, most: int = 100, longest: int = 500) -> dict[str, str]:
        """Take an object of texts."""
        value = self._take(name)
        if not isinstance(value, dict) or len(value) > most:
            self._fail(name, f"must be an object of at most {most} texts")
        return {
            self._text(key, name, 100, None): self._text(each, name, longest, None)
            for key, each in value.items()
        }

    def integer(self, name: str, low: int = 0, high: int = LARGEST_INTEGER) -> int:
        """Take an integer from low to high."""
        value = self._take(name)
        if type(value) is not int or not low <= value <= high:
            self._fail(name, f"must be an integer from {low:,} to {high:,}")
        return value

    def integers(self, name: str, *, most: int = 1000) -> tuple[int, ...]:
        """Take a list of integers."""
        values = self.items(name, most)
        if any(type(value) is not int or not 0 <= value <= LARGEST_INTEGER for value in values):
            self._fail(name, "must be a list of integers, 0 or more")
        return tuple(values)

    def number(self, name: str, low: float = 0.0, high: float = 1e15) -> float:
        """Take a finite number from low to high."""
        value = self._take(name)
        fine = type(value) in (int, float) and low <= value <= high and math.isfinite(value)
        if not fine:
            self._fail(name, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def items(self, name: str, most: int) -> list[Any]:
        """Take a list of anything."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > most:
            self._fail(name, f"must be a list of at most {most:,}")
        return value

    def done(self) -> None:
        """Refuse fields that nobody has asked for."""
        if self._left:
            raise InputError(f"{self._where}: unknown field {_shown(next(iter(self._left)))}.")

    def _take(self, name: str) -> Any:
        if name not in self._left:
            raise InputError(f"{self._where}: the field {name!r} is missing.")
        return self._left.pop(name)

    def _text(self, value: Any, name: str, longest: int, pattern: str | None) -> str:
        if not isinstance(value, str) or len(value) > longest:
            self._fail(name, f"must be text of at most {longest} characters")
        if not value.isprintable():  # no control characters, no half pairs, no turned direction
            self._fail(name, "must have printable characters only")
        if pattern is not None and not re.fullmatch(pattern, value):
            self._fail(name, f"is {_shown(value)}, which is not of the form {pattern}")
        return value

    def _fail(self, name: str, reason: str) -> NoReturn:
        raise InputError(f"{self._where}: {name!r} {reason}.")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the field {_shown(key)} comes twice")
        found[key] = value
    return found


def _shown(text: str) -> str:
    """Write foreign text so that it does nothing to a terminal, and not all of it."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
