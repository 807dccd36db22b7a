"""Training and evaluation modes of a network's modules, which need not be one for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_modes(network: nn.Module) -> Iterator[None]:
    """Put every module back into its own mode on the way out."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and every module back into its own mode after."""
    with kept_modes(network):
        network.eval()
        yield
