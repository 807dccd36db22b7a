"""What there is: environments, and the entries of a registry."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from haq_env.registry import Registry

# How functions' docstrings begin, and what they refer readers of the code to.
_VERB = re.compile(r"^(Return|Build|Make|Load)s? (the |an? )?(?=\S)")
_REFERENCE = re.compile(r" \(see `[^`]*`\)|`")


def registry_table(
    registry: Registry[Any], more: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> Table:
    """List names with the first lines of their docstrings.

    Everything in the registry is imported for it, so some lists are faster than others.

    Args:
        registry: what to list.
        more: further columns: head to the cells of those names that have one.
    """
    table = _table(registry.kind, *more)
    table.add_column("what it is", overflow="fold")
    for name in registry:
        cells = (cells.get(name, "-") for cells in more.values())
        table.add_row(*map(Text, (name, *cells, describe(registry[name]))))
    return table


def describe(thing: object) -> str:
    """Return the first paragraph of a docstring as a description: without "Return the"."""
    first = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]
    text = _REFERENCE.sub("", _VERB.sub("", " ".join(first.split())))
    return text[:1].upper() + text[1:] if text else "(no description)"


def environment_table() -> Table:
    """List the registered environments, the user's own ones among them."""
    from haq_env import VARIANTS  # the import registers the environments

    ours = {entry for entry, _ in VARIANTS.values()}
    keys = ("hardware", "metric", "budget", "quantizer")
    table = _table("environment", *keys)
    for spec in sorted(gym.registry.values(), key=lambda spec: spec.id):
        if spec.entry_point in ours:
            about = {"quantizer": "linear", **spec.kwargs}
            table.add_row(*map(Text, (spec.id, *(str(about.get(key, "-")) for key in keys))))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
