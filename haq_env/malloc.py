"""Telling the C library to keep memory that is freed, for processes that do nothing but compute."""

from __future__ import annotations

import ctypes
import sys

# Numbers of malloc.h, of glibc; mallopt(3) says what they do.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process hold on to the memory that it has once had, and use it again.

    A step of training can free more than glibc keeps. It gives the pages back, and at the next step
    the kernel must clear new ones: an epoch of MobileNet-V1 0.5 at 32 pixels, compiled on two
    threads, took 51 to 59 s so, a third of it in the kernel, and 32 to 34 s with this setting.
    No result changes. It is a setting of the whole process, so commands, benchmarks and worker
    processes make it, and importing this package does not.

    Returns:
        Whether the C library took it; others than glibc have no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # everything from the heap, which is never made smaller
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
