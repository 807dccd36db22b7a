"""Verified numbers that commands read, each seen to be of the submission beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leaderboard_folders import submissions
from rich.console import Console

from haq_env.errors import InputError
from haq_env.leaderboard.published import check_published
from haq_env.leaderboard.submission import Submission, read_submission
from haq_env.leaderboard.verified import Verified
from haq_env.leaderboard.verified_file import FILE, read_all, read_verified


def read_checked(named: Sequence[Path], console: Console) -> list[tuple[Submission, Verified]]:
    """Read submissions with their verified numbers, in the order of their names.

    Args:
        named: folders; all there are when empty, but for those that nobody has verified.
        console: where those that are left out are told.

    Raises:
        InputError: a file cannot be read, numbers are of another submission than the one beside
            them, or a folder that was named has none.
    """
    folders = []
    for folder in submissions(named):
        if (folder / FILE).exists():
            folders.append(folder)
        elif named:
            raise InputError(f"{folder} has no {FILE}: verify it first.")
        else:
            console.print(f"left out: {folder}, which nobody has verified", highlight=False)
    found = read_all(folders)
    beside: dict[str, Submission] = {}
    for folder in folders:
        try:
            submission = read_submission(folder)
            check_published(submission, read_verified(folder / FILE))
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error
        beside[submission.name] = submission
    return [(beside[verified.name], verified) for verified in found]
