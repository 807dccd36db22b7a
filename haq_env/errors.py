"""The one exception that a user's input can raise, and other errors in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message says what was wrong and what is allowed. The command line prints it without a
    traceback; in Python it is a `ValueError`.
    """


class OccupiedError(InputError):
    """Other work is where something would be written; it was left as it is.

    Commands add which of their flags help.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def typed_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message, if it has one."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Build the error for a name that is not known, with the nearest known one.

    Args:
        kind: what the name should be, for example ``"hardware"``.
        name: what came.
        known: every name that is allowed.
    """
    known = sorted({*known})
    longer = [each for each in known if str(name) and each.startswith(str(name))]
    near = longer or difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")
