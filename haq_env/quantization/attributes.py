"""What training changes in a network, optimizers apart: tensors, counters, averages of its own.

An answer must not depend on what was evaluated before. Tracing leaves symbols in plain attributes.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_TORCHS = frozenset(vars(nn.Module()))  # parameters, buffers, hooks, mode
_OURS = ("slot",)  # bits are set by whoever runs the network
_CONSTANTS = (int, float, complex, str, bytes, type(None))
_MUTABLE = (Tensor, np.ndarray, np.random.Generator, random.Random, torch.Generator)
_DEPTH = 4  # of containers in containers; what is deeper is no state


class Attributes(NamedTuple):
    """Plain attributes of one module.

    Attributes:
        names: of all that it had; None for modules of torch and of this package, which keep
            what they make when they first need it.
        values: of those that are numbers, texts, tensors, arrays, random generators, None, and
            containers of such.
    """

    names: frozenset[str] | None
    values: dict[str, Any]


Kept = dict[str, Attributes]


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, each name of a shared one."""
    parameters = network.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(network.named_buffers(remove_duplicate=False))}


def put_tensors_back(network: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers back in place.

    A buffer that was none then becomes none; one that has another shape, or is none, a new tensor.
    """
    with torch.no_grad():
        for path, part in network.named_modules():
            for name, buffer in part._buffers.items():
                known = kept.get(f"{path}.{name}" if path else name)
                if known is None:
                    part._buffers[name] = None
                elif buffer is None or buffer.shape != known.shape:
                    part._buffers[name] = known.clone()
        for name, tensor in tensors(network).items():
            tensor.copy_(kept[name])


def is_users(part: nn.Module) -> bool:
    """Tell whether a module is of a class of the user's own."""
    return not type(part).__module__.startswith(("torch.nn.", "haq_env."))


def plain_attributes(network: nn.Module, *, of_users: bool = False) -> Kept:
    """Return what modules have as plain attributes, by module path.

    Args:
        network: any.
        of_users: only those of modules whose class is the user's own.
    """
    found, memo = {}, dict[int, Any]()
    for path, part in network.named_modules():
        if of_users and not is_users(part):
            continue
        own = {k: v for k, v in vars(part).items() if k not in _TORCHS and k not in _OURS}
        values = {name: _copied(value, memo) for name, value in own.items() if _is_state(value)}
        found[path] = Attributes(frozenset(own) if is_users(part) else None, values)
    return found


def put_back(network: nn.Module, kept: Kept) -> None:
    """Give attributes the values that `plain_attributes` has found; later ones go."""
    parts, memo = dict(network.named_modules()), dict[int, Any]()
    for path, (names, values) in kept.items():
        state = parts[path].__dict__
        if names is not None:
            for name in state.keys() - names - _TORCHS - {*_OURS}:
                del state[name]
        for name, value in values.items():
            state[name] = _copied(value, memo)


def _is_state(value: object, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple, set, deque, dict)):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return depth < _DEPTH and all(_is_state(each, depth + 1) for each in parts)
    return isinstance(value, (*_CONSTANTS, *_MUTABLE))


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy a value; with one memo, what modules share stays shared."""
    if isinstance(value, _CONSTANTS):
        return value
    if isinstance(value, Tensor):  # one that was computed with gradients cannot be copied deeply
        return memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(value, memo)


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
