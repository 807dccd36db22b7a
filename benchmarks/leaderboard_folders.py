"""Where submissions and the leaderboard's tables are, and which submissions a command is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from haq_env.errors import InputError

SUBMISSIONS = Path(__file__).parent / "submissions"
REPORT = Path(__file__).parent / "results" / "leaderboard"

Folders = Annotated[
    Positional[tuple[Path, ...]],
    arg(metavar="FOLDER", help="Submissions; all in benchmarks/submissions when not given."),
]


def submissions(folders: Sequence[Path]) -> list[Path]:
    """Return the folders that were named, or all there are.

    Raises:
        InputError: there is none.
    """
    found = list(folders) or sorted(path for path in SUBMISSIONS.glob("[!.]*") if path.is_dir())
    if not found:
        raise InputError(f"there is no submission in {SUBMISSIONS}: name a folder.")
    return found
