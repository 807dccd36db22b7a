"""See whether this machine's integer kernels compute what they are used for.

The operators are not documented, so they may be missing or change; and without VNNI, processors
add pairs of 8-bit products in 16 bits, which saturates.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from haq_env.quantization.kernels import Unsupported

# channels, groups, kernel size, code of zero
_CONVOLUTIONS = (
    *((64, 1, 1, 0), (64, 1, 3, 0), (64, 64, 3, 0)),
    *((64, 1, 1, 128), (16, 1, 3, 128), (32, 32, 3, 128)),
)
_FAILURES = (AttributeError, RuntimeError, TypeError)


@cache
def check_kernels() -> None:
    """See once that the operators exist here and compute exactly what they are used for.

    Raises:
        Unsupported: they do not; floating point has to serve.
    """
    reason = _fault()
    if reason:
        raise Unsupported(reason)


def _fault() -> str:
    ops: Any = torch.ops.onednn
    none = torch.zeros(1, dtype=torch.int64)
    for channels, groups, size, zero in _CONVOLUTIONS:
        codes = _extremes(0, 255, 2, channels, 7, 7)
        weight = _extremes(-127, 127, channels, channels // groups, size, size)
        exact = F.conv2d((codes - zero).double(), weight.double(), None, 1, size // 2, 1, groups)
        inputs = codes.to(torch.uint8).contiguous(memory_format=torch.channels_last)
        geometry = [1, 1], [size // 2] * 2, [1, 1], groups
        scale, shift = torch.ones(channels), torch.zeros(channels)
        extra = torch.ones_like(exact, dtype=torch.float32).contiguous(
            memory_format=torch.channels_last
        )
        try:
            packed = ops.qconv_prepack(
                weight.to(torch.int8), scale, 1.0, zero, *geometry, list(inputs.shape)
            )
            head = inputs, 1.0, zero, packed
            tail = *geometry, 1.0
            sums = ops.qconv2d_pointwise(
                *(*head, scale, none, shift, *tail, 0, torch.float32, "none", [], "")
            )
            rest = ops.qconv2d_pointwise.binary(
                *(*head, scale, none, extra, shift, *tail, 0, torch.float32),
                *(1.0, 0, "sum", None, "relu", [], ""),
            )
            # negative scales, as a batch norm may have, and the next layer's codes
            small = ops.qconv2d_pointwise(
                *(*head, -scale / 1024, none, shift, *tail, 128, torch.uint8),
                *("hardtanh", [-7.0, 7.0], ""),
            )
        except _FAILURES as error:
            return f"torch has no integer convolution here ({type(error).__name__})"
        expected = (-exact / 1024).clamp(-7, 7).round() + 128
        if not (
            torch.equal(sums.double(), exact)
            and torch.equal(rest.double(), (exact + 1).relu())
            and torch.equal(small.double(), expected)
        ):
            return "integer convolutions are not exact on this processor (no VNNI)"
    return _linear_fault(_extremes(0, 255, 3, 128), _extremes(-127, 127, 10, 128))


def _linear_fault(codes: Tensor, weight: Tensor) -> str:
    ops: Any = torch.ops.onednn
    none = torch.zeros(1, dtype=torch.int64)
    for zero in (0, 128):
        try:
            packed = ops.qlinear_prepack(weight.to(torch.int8), list(codes.shape))
            sums = ops.qlinear_pointwise(
                *(codes.to(torch.uint8), 1.0, zero, packed, torch.ones(10), none, torch.zeros(10)),
                *(1.0, 0, torch.float32, "none", [], ""),
            )
        except _FAILURES as error:
            return f"torch has no integer matrix product here ({type(error).__name__})"
        if not torch.equal(sums.double(), (codes - zero).double() @ weight.double().T):
            return "integer matrix products are not exact on this processor (no VNNI)"
    return ""


def _extremes(low: int, high: int, *shape: int) -> Tensor:
    # the largest products in long runs of one sign: 16-bit sums would saturate
    picks = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(low + len(shape)))
    return torch.where(picks > 0, high, low)
