"""Output to the terminal, to pipes and to files that may not be writable."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from rich.console import Console, RenderableType

from haq_env.errors import InputError


def write(text: str) -> None:
    """Write to stdout at once.

    Raises:
        InputError: stdout cannot be written, for example because the disk is full.
        BrokenPipeError: nobody reads it any more.
    """
    stdout: TextIO | None = sys.stdout  # None if the shell has closed it
    if stdout is None:
        raise InputError("cannot write the output: it is closed.")
    try:
        stdout.write(text)
        stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence()
        raise InputError(f"cannot write the output: {error.strerror}.") from error


class _Page(io.StringIO):
    """What goes to stdout, kept for a while, with stdout's own abilities."""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read by rich, written by nobody
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()


def show(renderable: RenderableType) -> None:
    """Print something rich to stdout, in colours if that is a terminal; raises as `write`."""
    # Rich itself would end the program at a broken pipe and fail at a full disk.
    page = _Page()
    Console(file=page).print(renderable)
    write("\n".join(line.rstrip(" ") for line in page.getvalue().split("\n")))


class Live(Console):
    """A console on stdout for what lasts: a reader that has gone away is a BrokenPipeError."""

    def on_broken_pipe(self) -> None:
        """Leave the end of the program to whoever started the work."""
        raise BrokenPipeError


def columns() -> int:
    """Return how many characters fit a line of stdout; 80 where nobody knows."""
    return Console().width


def lenient() -> None:
    """Let stdout write '?' for what its encoding does not have, and have a width.

    Without, it would fail, and print nothing where COLUMNS is 0.
    """
    if not os.environ.get("COLUMNS", "80").strip("0"):
        del os.environ["COLUMNS"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def silence() -> None:
    """Send what stdout still holds nowhere: Python flushes at exit, which would fail again."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file: nothing can fail at exit
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), number)
