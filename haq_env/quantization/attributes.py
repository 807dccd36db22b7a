"""What a network keeps besides parameters and buffers: counters, schedules, averages of its own.

Training changes such attributes as well, and an answer must not depend on what was evaluated
before. Tracing leaves symbols in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Kept = dict[str, dict[str, Any]]

_OURS = ("training", "slot")  # modes and bits are set by whoever runs the network


def plain_attributes(network: nn.Module) -> Kept:
    """Return numbers, texts and tensors that modules have as plain attributes, by module."""
    found = {}
    for path, part in network.named_modules():
        values = {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in vars(part).items()
            if name not in _OURS and isinstance(value, (int, float, str, torch.Tensor))
        }
        if values:
            found[path] = values
    return found


def put_back(network: nn.Module, kept: Kept) -> None:
    """Give attributes the values that `plain_attributes` has found."""
    parts = dict(network.named_modules())
    for path, values in kept.items():
        state = parts[path].__dict__
        for name, value in values.items():
            state[name] = value.clone() if isinstance(value, torch.Tensor) else value


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Put every attribute and buffer of a network's modules back that is assigned meanwhile."""
    before = [(part, dict(vars(part)), dict(part._buffers)) for part in network.modules()]
    try:
        yield
    finally:
        for part, attributes, buffers in before:
            vars(part).clear()
            vars(part).update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)
