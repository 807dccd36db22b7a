"""Small files that long runs leave: written at once or not at all, and never of other settings."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from haq_env.errors import InputError


def read(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}.") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is damaged: it holds no object.")
    return record


def write(path: Path, record: dict[str, Any]) -> None:
    """Write an object as JSON; nobody ever sees half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
        scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error


def keep_settings(path: Path, about: dict[str, Any]) -> None:
    """Write settings beside results, or see that they are those of the results that are there.

    Raises:
        InputError: what is there was made with others.
    """
    if not path.exists():
        write(path, about)
    known = read(path)
    for name, value in json.loads(json.dumps(about)).items():
        if known.get(name) != value:
            raise InputError(
                f"{path} is of another run: {name} was {known.get(name)!r} and is now {value!r}. "
                "Give the same settings, or another --out and --results."
            )


def weights_digest(path: Path) -> str:
    """Return 12 hexadecimal digits of a checkpoint's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
