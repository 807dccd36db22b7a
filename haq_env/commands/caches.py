"""What is in an evaluation cache, and what may go."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import subcommand

from haq_env.options import CacheFile, Selection
from haq_env.report.terminal import show, write


@dataclass(frozen=True)
class CacheShow:
    """Show what an evaluation cache holds: answers by network, data set, tier and seed."""

    path: CacheFile = Path("cache.sqlite")

    def run(self) -> None:
        """Print the table."""
        from haq_env.evaluation.cache import EvaluationCache
        from haq_env.report.cached import cache_table

        with closing(EvaluationCache(self.path, create=False)) as cache:
            show(cache_table(cache))


@dataclass(frozen=True)
class CachePrune:
    """Drop answers from an evaluation cache."""

    path: CacheFile
    selection: Selection
    dry_run: bool = False
    """Only say how many."""

    def run(self) -> None:
        """Drop them, and print how many they were."""
        from haq_env.evaluation.cache import EvaluationCache

        chosen = self.selection
        chosen.check()
        with closing(EvaluationCache(self.path, create=False)) as cache:
            dropped = cache.prune(
                older_than=chosen.older_than or 0.0, network=chosen.network, dry_run=self.dry_run
            )
        done = "Would be dropped" if self.dry_run else "Dropped"
        write(f"{done}: {dropped:,} answer{'s' * (dropped != 1)}\n")


@dataclass(frozen=True)
class Cache:
    """Show or prune an evaluation cache."""

    action: Annotated[CacheShow, subcommand("show")] | Annotated[CachePrune, subcommand("prune")]

    def run(self) -> None:
        """Do what was chosen."""
        self.action.run()
