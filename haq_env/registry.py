"""Names of things, and where they live: one registry for each kind of thing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TypeVar, cast

from haq_env.errors import InputError, first_line, unknown_name

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing]):
    """A mapping from names to objects that are imported when they are first asked for.

    Listing the names therefore costs nothing: no torch, no simulator is imported for it.

    Args:
        kind: what is registered, used in error messages ("hardware", "network", ...).
        entries: name to ``"module:attribute"``.

    Example:
        >>> shapes: Registry[type] = Registry("shape", {"deque": "collections:deque"})
        >>> shapes["deque"].__name__
        'deque'
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries: dict[str, str | Thing] = dict(entries)

    def register(self, name: str, thing: str | Thing) -> None:
        """Add one entry: a ``"module:attribute"`` string or the object itself."""
        self._entries[name] = thing

    def address(self, name: str) -> str | None:
        """Return where an entry lives, without importing it; None if the object is here itself.

        Raises:
            InputError: there is no such entry.
        """
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        entry = self._entries[name]
        return entry if isinstance(entry, str) else None

    def __getitem__(self, name: str) -> Thing:
        address = self.address(name)
        if address is None:
            return cast(Thing, self._entries[name])
        module, _, attribute = address.partition(":")
        try:
            thing: Thing = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"{self.kind} {name!r} cannot be loaded from {address!r}: {first_line(error)}."
            ) from error
        return thing

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
