"""Small files that long runs leave: written at once or not at all, and never of other settings."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from haq_env.data import dataset_argument
from haq_env.errors import InputError
from haq_env.files import replace_file, writing
from haq_env.summation import AVX2
from haq_env.versions import versions


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
    write_text(path, json.dumps(record, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step, in a folder that is made if it is missing.

    Raises:
        InputError: it cannot be written; what was there stays.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)


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


def command_line(script: str, settings: Any) -> str:
    """Write the command that repeats a run: what is not the default, without places of a machine.

    Args:
        script: path of the benchmark.
        settings: a dataclass; its fields of the type Path do not decide what comes out, but for
            the folder of weights.
    """
    words = ["python", f"benchmarks/{Path(script).name}"]
    for field in fields(settings):
        value = getattr(settings, field.name)
        place = isinstance(value, Path)
        if value == field.default or (place and field.name != "weights"):
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if place:
            words.append("FOLDER")
        elif field.name == "dataset":
            words.append(shlex.quote(dataset_argument(value)))
        elif value is not True:
            values = value if isinstance(value, tuple) else (value,)
            if field.name == "datasets":
                values = tuple(map(dataset_argument, values))
            words.append(shlex.join(map(str, values)))
    return " ".join(words)


def sums() -> str:
    """Return in which order this process adds, see `haq_env.summation`."""
    as_avx2 = all(os.environ.get(name) == value for name, value in AVX2.items())
    return f"sums in the order of {'AVX2' if as_avx2 else 'this processor'}"


def versions_line(*packages: str) -> str:
    """Return `haq_env.versions.versions` as one line of text."""
    return ", ".join(f"{name} {number}" for name, number in versions(*packages).items())


def weights_digest(path: Path) -> str:
    """Return 12 hexadecimal digits of a checkpoint's weights, whatever else is noted there."""
    raw = path.read_bytes()
    header = int.from_bytes(raw[:8], "little")  # a safetensors file: length, header, tensors
    return hashlib.sha256(raw[8 + header :]).hexdigest()[:12]
