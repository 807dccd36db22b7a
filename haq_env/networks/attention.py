"""Torch's fused path of attention layers, which reads the float weights of layers it does not call.

The switch is one for the whole process, and networks may be run from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.backends import mha

_lock = threading.Lock()
_inside = 0  # how many `fastpath_off` are open
_before = True  # what the switch was when the first of them was opened


def has_fastpath(network: nn.Module) -> bool:
    """Tell whether a network has modules that may take the fused path."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
    return any(isinstance(module, kinds) for module in network.modules())


@contextmanager
def fastpath_off() -> Iterator[None]:
    """Let attention layers call the layers inside them; blocks may overlap in several threads."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = mha.get_fastpath_enabled()
            mha.set_fastpath_enabled(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                mha.set_fastpath_enabled(_before)
