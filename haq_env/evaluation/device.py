"""Where torch computes, and how: devices, threads and modes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from haq_env.errors import InputError, first_line

if TYPE_CHECKING:
    import torch


@cache
def survive_forks() -> None:
    """Let forked processes compute on one thread, as vector environments of Gymnasium do.

    OpenMP's threads do not exist in the copy of a process that had used them, which would wait for
    them for ever.
    """

    def in_child() -> None:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=in_child)


def check_device(name: str) -> None:
    """See that a torch device can be used, without touching it.

    A process that has touched CUDA cannot be forked, which vector environments do.

    Raises:
        InputError: it cannot.
    """
    import torch

    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or not number):
        find_device(name)
    elif int(number or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"torch device {name!r} cannot be used: {count} CUDA devices are there.")


def find_device(name: str) -> torch.device:
    """Return a torch device; raise InputError if it cannot be used."""
    import torch

    try:
        tensor = torch.zeros(1, device=name)
        tensor.item()  # the meta device computes nothing
        return tensor.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"torch device {name!r} cannot be used: {first_line(error)}") from error


@contextmanager
def own_modes() -> Iterator[None]:
    """Let gradients be computed, and in full precision, whatever modes the caller is in."""
    import torch

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, and on as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
