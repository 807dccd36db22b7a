"""See whether this machine's integer kernels compute what they are used for.

The operators are not documented, so they may be missing or change; and without VNNI, processors
add pairs of 8-bit products in 16 bits, which saturates.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from haq_env.quantization.products import FULL, HALF, After, Geometry, Product, Unsupported

# channels, groups, kernel size, code of zero
_DEPTHWISE = (64, 64, 3, 0), (32, 32, 3, 128)
_OTHERS = (64, 1, 1, 0), (64, 1, 3, 0), (64, 1, 1, 128), (16, 1, 3, 64), (32, 2, 3, 0)
_FAILURES = (AttributeError, RuntimeError, TypeError)


@cache
def exact_weights(depthwise: bool = False) -> int:
    """Return the largest weight code whose sums are exact here, whatever the inputs are.

    It is 127, all there are at 8 bits, with VNNI, and 64 without it: a pair of products with
    such weights still fits into 16 bits.

    Args:
        depthwise: of depthwise convolutions, which have kernels of their own.

    Raises:
        Unsupported: the operators do not exist here, or are not even exact for 64.
    """
    fault = ""
    try:
        for largest in (FULL, HALF):
            if not (fault := _fault(largest, depthwise)):
                return largest
    except _FAILURES as error:
        raise Unsupported(f"torch has no integer kernels here ({type(error).__name__})") from error
    raise Unsupported(f"{fault} are not exact on this processor")


def _fault(largest: int, depthwise: bool) -> str:
    """Name what is not exact for weights up to the largest, if anything is."""
    for channels, groups, size, zero in _DEPTHWISE if depthwise else _OTHERS:
        codes = _extremes(0, 255, 2, channels, 7, 7)
        weight = _extremes(-largest, largest, channels, channels // groups, size, size)
        geometry = [1, 1], [size // 2] * 2, [1, 1], groups
        exact = F.conv2d((codes - zero).double(), weight.double(), None, *geometry)
        if not _exact(codes, weight, zero, geometry, exact):
            return "integer convolutions"
    for zero in () if depthwise else (0, 128):
        codes, weight = _extremes(0, 255, 3, 128), _extremes(-largest, largest, 10, 128)
        if not _exact(codes, weight, zero, None, (codes - zero).double() @ weight.double().T):
            return "integer matrix products"
    return ""


def _exact(
    codes: Tensor, weight: Tensor, zero: int, geometry: Geometry | None, exact: Tensor
) -> bool:
    """Tell whether a product gives exact sums, with all that is done to them afterwards."""
    layout = torch.contiguous_format if geometry is None else torch.channels_last
    inputs = codes.to(torch.uint8).contiguous(memory_format=layout)
    one, none = torch.ones(len(weight)), torch.zeros(len(weight))

    def computed(scale: float, after: After, added: Tensor | None = None) -> Tensor:
        product = Product(weight.to(torch.int8), zero, geometry, scale * one, none, after)
        return product(inputs, added).double()

    # negative scales, as a batch norm may have, and the next layer's codes
    small = computed(-1 / 1024, After("hardtanh", (-7.0, 7.0), 128))
    right = torch.equal(computed(1.0, After()), exact)
    right &= torch.equal(small, (-exact / 1024).clamp(-7, 7).round() + 128)
    if geometry is not None:
        ones = torch.ones_like(exact, dtype=torch.float32).contiguous(memory_format=layout)
        right &= torch.equal(computed(1.0, After("relu"), ones), (exact + 1).relu())
    return right


def _extremes(low: int, high: int, *shape: int) -> Tensor:
    # the largest products in long runs of one sign: 16-bit sums would saturate
    picks = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(low + len(shape)))
    return torch.where(picks > 0, high, low)
