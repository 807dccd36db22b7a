"""A folder that a search lives in: one process at a time, and the same search when it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from haq_env.errors import InputError

LOG = "episodes.csv"
AGENT = "agent.pt"
MEASURED = "episodes.measured.csv"  # while an agent that goes on catches up with the log
SETTINGS = "search.json"  # what a log of `search_policy` is of
# Of no use without the log; an agent's, if they stayed, would be taken for those of the next one.
BESIDE_A_LOG = (AGENT, MEASURED, "episodes.charge.json", SETTINGS)


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Keep other processes from searching in a folder for so long.

    Args:
        folder: made where it is missing. The lock goes with the process, however that ends; its
            file, ``.lock``, stays.

    Raises:
        InputError: another search is going on there, or nothing can be written there.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another search is going on in {folder}: wait for it, or take another folder."
        ) from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.release()


def check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """See that settings are those of the run to be resumed.

    Args:
        path: JSON file of that run's settings.
        settings: those of now, as JSON would return them.

    Raises:
        InputError: one differs, or the file cannot be read.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"cannot resume {path.parent}: it has no {path.name}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    if not isinstance(kept, dict):
        raise InputError(f"{path} holds no settings of a run.")
    for name in sorted({*kept, *settings}):
        if kept.get(name) != settings.get(name):
            raise InputError(
                f"cannot resume {path.parent}: {name} was {kept.get(name)!r} and is now "
                f"{settings.get(name)!r}."
            )
