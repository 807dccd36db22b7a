"""A user's own objects by address: ``package.module:attribute``."""

from __future__ import annotations

import importlib
import operator
import os
import sys
from typing import Any

from haq_env.errors import InputError, unknown_name


def import_address(kind: str, address: str) -> Any:
    """Import what an address names, from installed packages or the current directory.

    Args:
        kind: what it should be, for error messages ("network", "hardware", ...).
        address: ``"package.module:attribute"``.

    Raises:
        InputError: not an address, the module cannot be imported, or it has no such attribute.
    """
    module_name, _, attribute = address.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{kind} {address!r} is not of the form package.module:attribute.")
    # A console script does not look into the current directory. It goes to the end, so that no
    # file there hides an installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"{kind} {address!r}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError:
        things = {name: thing for name, thing in vars(module).items() if callable(thing)}
        own = [n for n, thing in things.items() if getattr(thing, "__module__", "") == module_name]
        known = own or things  # what it imports is seldom meant
        raise unknown_name(f"{kind} in {module_name}", attribute, known) from None
