"""Which versions a result was made with: of packages, of the processor, of this code."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import haq_env

PACKAGES = ("haq-env", "gymnasium", "stable-baselines3", "torch", "torchvision", "numpy")
CODE = ("haq_env", "benchmarks/*.py")  # of a checkout: what results come from, not results
COMMIT = "[0-9a-f]{40}([0-9a-f]{24})?(-dirty)?"  # the form of `commit`: SHA-1 or SHA-256


def processor() -> str:
    """Return what the processor calls itself and the vector units that torch uses of it."""
    import torch

    name = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        name = re.findall(r"model name\s*: (.*)", text)[0]
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


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


def commit(root: Path | None = None) -> str | None:
    """Return the commit of the checkout that this package is used from.

    Args:
        root: of the checkout; the folder of this package when None.

    Returns:
        All digits, with ``-dirty`` after them where the code (`CODE`) is not what was committed;
        None outside of a checkout, which an installed package is, or without git.
    """
    root = Path(haq_env.__file__).resolve().parent.parent if root is None else root.resolve()
    try:
        # a package that is installed inside of somebody's own repository is none of its files
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return None
        digits = _git(root, "rev-parse", "--verify", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return f"{digits}-dirty" if changed else digits


def _git(root: Path, *command: str) -> str:
    # git's own variables, which a hook has, may be about another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(root), *command],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()
