"""Which versions a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import haq_env

PACKAGES = ("haq-env", "gymnasium", "stable-baselines3", "torch", "torchvision", "numpy")


def versions_line(*packages: str) -> str:
    """Return `versions` as one line of text."""
    return ", ".join(f"{name} {number}" for name, number in versions(*packages).items())


def versions(*packages: str) -> dict[str, str]:
    """Return versions by package, and Python's; packages that are not installed are left out.

    Args:
        *packages: their names; `PACKAGES` when there are none.
    """
    found = {}
    for name in packages or PACKAGES:
        try:
            # a plain clone that nobody installed has no metadata
            found[name] = haq_env.__version__ if name == "haq-env" else version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}
