"""Which versions a result was made with."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import haq_env

PACKAGES = ("haq-env", "gymnasium", "stable-baselines3", "torch", "torchvision", "numpy")


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
