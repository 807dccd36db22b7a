"""What two kinds of processor measure for the same policies, finetuned with the same seeds.

    python benchmarks/leaderboard_machines.py [VERIFIED OTHER]

Compares the policies of a verified.json with those that another machine has measured. Executes
nothing; `leaderboard.py verify` makes such files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Settings:
    """Compare what two machines measured."""

    verified: tyro.conf.Positional[Path] = HERE / "results" / "leaderboard" / "avx2.json"
    """Verified numbers of one machine."""
    other: tyro.conf.Positional[Path] = HERE / "results" / "leaderboard" / "avx512.json"
    """Those of another one."""


def policies(path: Path) -> dict[tuple[str, ...], list[float]]:
    """Read accuracies by track and bits: held out, then on test images for each fresh seed."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["policies"]
        return {tuple(row[:3]): row[5:] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} holds no verified policies: {error!r}.") from error


def line(name: str, here: list[float], there: list[float]) -> str:
    """Describe differences, there minus here, in points."""
    found = np.array(there) - np.array(here)
    near = int((np.abs(found) <= 0.5).sum())
    return (
        f"{name}: {len(found)} policies, {near} within 0.5 points, largest difference "
        f"{np.abs(found).max():.2f}, mean {found.mean():+.2f}, standard deviation {found.std():.2f}"
    )


def main() -> None:
    """Print one line for accuracies inside the search, and one for scores."""
    settings = tyro.cli(Settings, description=__doc__)
    here, there = policies(settings.verified), policies(settings.other)
    both = sorted(here.keys() & there.keys())
    scored = [key for key in both if len(here[key]) > 1 and len(there[key]) > 1]
    pairs = [[each[key][0] for key in both] for each in (here, there)]
    print(line("held-out accuracy, one seed", *pairs))
    scores = [[float(np.mean(each[key][1:])) for key in scored] for each in (here, there)]
    print(line("score, mean of three fresh seeds", *scores))


if __name__ == "__main__":
    main()
