"""Keeping what a C++ library prints for debugging out of a command's output."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_c_output() -> Iterator[None]:
    """Throw away what C code of this process writes to standard output meanwhile.

    HiGHS prints lines with ``printf`` that no option of it turns off; they would stand in the
    tables and in the JSON of commands. C buffers what goes to a file or a pipe, so its buffers are
    emptied before and after. What other threads print meanwhile is lost, too. Without a standard
    output, or with a C library that cannot be called, nothing is kept back.
    """
    try:
        flush = ctypes.CDLL(None).fflush
        kept = os.dup(1)
    except (OSError, TypeError, AttributeError):  # TypeError: Windows
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        sys.stdout.flush()
        flush(None)
        os.dup2(nowhere, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)
