"""Copies of networks that their owners may go on using."""

from __future__ import annotations

import copy

from torch import nn

from haq_env.errors import InputError


def copied(module: nn.Module) -> nn.Module:
    """Return a copy of a network.

    Raises:
        InputError: it cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:  # torch.nn.utils.weight_norm keeps a weight that is computed
        raise InputError(f"the network cannot be copied: {error}") from error
