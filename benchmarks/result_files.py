"""Small files that long runs leave: written at once or not at all, and never of other settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from haq_env.errors import InputError
from haq_env.files import replace_file, writing


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
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(record, indent=1) + "\n")


def keep_settings(about: dict[str, Any], *paths: Path) -> None:
    """Write settings beside results, or see that they are those of the results that are there.

    Nothing is written if one of the files differs.

    Raises:
        InputError: what is there was made with others.
    """
    for path in paths:
        known = read(path) if path.exists() else about
        for name, value in json.loads(json.dumps(about)).items():
            if json.loads(json.dumps(known.get(name))) != value:
                raise InputError(
                    f"{path} is of another run: {name} was {known.get(name)!r} and is now "
                    f"{value!r}. Give the same settings, or another --out and --results."
                )
    for path in paths:
        if not path.exists():
            write(path, about)


def weights_digest(path: Path) -> str:
    """Return 12 hexadecimal digits of a checkpoint's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
