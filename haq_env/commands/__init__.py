"""The commands of ``haq-env``: each a frozen dataclass with a ``run`` method.

What a command needs is imported when it runs, so that ``--help`` and the lists come at once.
"""

from __future__ import annotations

from typing import Protocol

from haq_env.commands.caches import Cache
from haq_env.commands.convert import Convert
from haq_env.commands.costs import Cost, Lint, RooflinePlot
from haq_env.commands.listings import ListDatasets, ListEnvironments, ListHardware, ListNetworks
from haq_env.commands.search import Search
from haq_env.commands.train import Train


class Command(Protocol):
    """A subcommand."""

    def run(self) -> None:
        """Do it; raises InputError for what the user gave wrong, SystemExit for exit codes."""
        ...


# One line for each command.
COMMANDS: dict[str, type[Command]] = {
    "search": Search,
    "cost": Cost,
    "roofline": RooflinePlot,
    "lint": Lint,
    "train": Train,
    "convert": Convert,
    "cache": Cache,
    "hardware": ListHardware,
    "networks": ListNetworks,
    "envs": ListEnvironments,
    "datasets": ListDatasets,
}
