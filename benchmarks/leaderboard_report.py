"""``benchmarks/leaderboard.py report``: verified numbers become tables, pages and curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from leaderboard_folders import REPORT, Folders
from leaderboard_verified import read_checked
from rich.console import Console
from tyro.conf import arg

from haq_env.errors import InputError
from haq_env.files import replace_files
from haq_env.leaderboard.agreement import agreement
from haq_env.leaderboard.curves import curves
from haq_env.leaderboard.page import page
from haq_env.leaderboard.protocol import SUITES
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.suites import by_suite
from haq_env.leaderboard.table import markdown
from haq_env.report.runs import Run, to_csv


@dataclass(frozen=True)
class Report:
    """Make the table, the page and the curves of each suite from verified numbers."""

    folders: Folders = ()
    out: Path = REPORT
    """Folder of README.md, index.html and curves.csv; those of the suites transfer and cifar10
    are in folders of their names."""
    tensorboard: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Also write the curves for TensorBoard."""

    def run(self, console: Console) -> int:
        """Write the files."""
        read = read_checked(self.folders, console)
        submitted = {verified.name: submission for submission, verified in read}
        parts = by_suite([verified for _, verified in read])
        if not parts:
            raise InputError("there is no verified run.")
        for suite in SUITES.values():
            stale = self.out / suite.folder / "README.md"
            if suite not in parts and stale.exists():
                raise InputError(f"{stale} is a table that no verified run is for: remove it.")
        runs: list[Run] = []
        texts: dict[Path, str] = {}
        for suite, part in parts.items():
            standings, folder = Standings(part), self.out / suite.folder
            others = [other for other in parts if other != suite]
            own = curves(standings)
            held = {each.name: agreement(submitted[each.name], each) for each in part}
            texts[folder / "README.md"] = markdown(part, standings, others, held)
            texts[folder / "index.html"] = page(part, standings, others, held)
            texts[folder / "curves.csv"] = to_csv(own)
            runs += own
        files = []
        if self.tensorboard is not None:  # first, because it can be missing
            from haq_env.report.tensorboard import write_tensorboard

            files.append(write_tensorboard(runs, self.tensorboard))
        replace_files(texts, folders=True)  # all of them: no new table beside an old page
        files += texts
        for file in files:
            console.print(f"Written: {file}", highlight=False, markup=False)
        return 0
