"""The caller's random generators: a network may draw from them, and they must not move."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put Python's and NumPy's global generators back on the way out; torch has its `fork_rng`."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
