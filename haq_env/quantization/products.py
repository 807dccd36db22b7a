"""Sums of products of 8-bit codes, exact in 32 bits, and what is done to each sum.

The kernels are oneDNN's, through operators that torch uses itself but does not document. They want
unsigned inputs, and write float32, which holds whole numbers up to 2^24 exactly.

Processors without VNNI add products in pairs, in 16 bits: 2 * 255 * 127 saturates there, and
2 * 255 * 64 does not. So weights above 64 that meet large inputs are taken apart there into two
halves, the layer is computed twice, and the sum of both is what the whole would have been.
`haq_env.quantization.kernel_check` finds out whether that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

FULL, HALF = 127, 64  # weights that sums are exact for: with VNNI, and where pairs saturate
_PAIR = (1 << 15) - 1  # the largest sum of two products without VNNI
_LARGEST = (1 << 31) - 1  # of a whole sum

Geometry = tuple[list[int], list[int], list[int], int]


class Unsupported(Exception):
    """This network, policy or machine has no integer path; the message says why, in one line."""


@dataclass(frozen=True)
class After:
    """What is done to the sums of a channel after its scale and shift.

    Attributes:
        name: ``"none"``, ``"relu"`` or ``"hardtanh"``.
        bounds: smallest and largest value of ``"hardtanh"``, in units of what is written.
        zero: the stored code of zero where codes are written (uint8); None where floats are.
    """

    name: str = "none"
    bounds: tuple[float, ...] = ()
    zero: int | None = None

    @property
    def written(self) -> tuple[float, int, torch.dtype]:
        """Scale, code of zero and type of what is written, as the operators want it."""
        if self.zero is None:
            return 1.0, 0, torch.float32
        return 1.0, self.zero, torch.uint8

    def apply(self, values: Tensor) -> Tensor:
        """Do it to floats, in place where it can be: what the operators do to their sums."""
        if self.name == "relu":
            values.relu_()
        elif self.name == "hardtanh":
            values.clamp_(*self.bounds)
        return values if self.zero is None else stored(values.round_(), self.zero)


def stored(codes: Tensor, zero: int) -> Tensor:
    """Store whole numbers as unsigned bytes; the floats may be overwritten.

    Args:
        codes: floats, -zero to 255 - zero.
        zero: the stored code of zero, 0 to 128.
    """
    # signed bytes and a flipped sign bit: the conversion to unsigned ones is six times slower
    signed = codes.add_(zero - 128) if zero != 128 else codes
    return signed.to(torch.int8).view(torch.uint8).bitwise_xor_(128)


@dataclass
class Product:
    """A convolution, or a matrix product, of stored codes with weights.

    Attributes:
        weight: int8 [K, C / groups, h, w], or [K, C].
        zero: the stored code of zero of the inputs.
        geometry: stride, padding, dilation and groups; None for a matrix product.
        scale: of the sums of each output channel, float32 [K].
        shift: added after the scale, float32 [K].
        after: what follows.
    """

    weight: Tensor
    zero: int
    geometry: Geometry | None
    scale: Tensor
    shift: Tensor
    after: After
    _packed: Tensor | None = field(default=None, init=False)
    _no_zero: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._no_zero = torch.zeros(1, dtype=torch.int64)  # of the weights

    def __call__(self, codes: Tensor, added: Tensor | None = None) -> Tensor:
        """Compute it.

        Args:
            codes: uint8, channels last; contiguous for a matrix product.
            added: floats of the output's shape, channels last, added before what follows;
                overwritten. Only for convolutions.
        """
        ops: Any = torch.ops.onednn
        after, name, bounds = self.after.written, self.after.name, list(self.after.bounds)
        if self._packed is None:  # now, because the fastest layout depends on the size of the map
            self._packed = (
                ops.qlinear_prepack(self.weight, list(codes.shape))
                if self.geometry is None
                else ops.qconv_prepack(
                    self.weight, self.scale, 1.0, self.zero, *self.geometry, list(codes.shape)
                )
            )
        operands = codes, 1.0, self.zero, self._packed, self.scale, self._no_zero
        if self.geometry is None:
            return cast(
                Tensor, ops.qlinear_pointwise(*operands, self.shift, *after, name, bounds, "")
            )
        if added is None:
            return cast(
                Tensor,
                ops.qconv2d_pointwise(
                    *operands, self.shift, *self.geometry, *after, name, bounds, ""
                ),
            )
        return cast(
            Tensor,
            ops.qconv2d_pointwise.binary(
                *operands,
                added,
                self.shift,
                *self.geometry,
                *after,
                1.0,
                0,
                "sum",
                None,
                name,
                bounds,
                "",
            ),
        )


@dataclass
class Halves:
    """A product whose pairs would saturate, computed as the sum of two that do not.

    Args:
        whole: the product.
    """

    whole: Product

    def __post_init__(self) -> None:
        weight, geometry = self.whole.weight, self.whole.geometry
        one, none = torch.ones_like(self.whole.scale), torch.zeros_like(self.whole.shift)
        half = torch.div(weight, 2, rounding_mode="trunc")
        self._halves = [
            Product(part, self.whole.zero, geometry, one, none, After())
            for part in (half, weight - half)
        ]

    def __call__(self, codes: Tensor, added: Tensor | None = None) -> Tensor:
        """Compute it, see `Product`."""
        first, second = self._halves
        sums = first(codes).add_(second(codes))
        shape = (-1,) if self.whole.geometry is None else (1, -1, 1, 1)
        sums.mul_(self.whole.scale.view(shape)).add_(self.whole.shift.view(shape))
        return self.whole.after.apply(sums if added is None else sums.add_(added))


def exact(product: Product, largest_input: int, largest_weight: int) -> Product | Halves:
    """Return what computes a product without saturating.

    Args:
        product: the product.
        largest_input: the largest stored code that comes.
        largest_weight: see `haq_env.quantization.kernel_check.exact_weights`.

    Raises:
        Unsupported: its sums do not fit into 32 bits.
    """
    weight = product.weight
    largest = int(weight.short().abs().max()) * largest_input  # int8 has no 128
    if largest * weight[0].numel() > _LARGEST:
        raise Unsupported(f"sums of {weight[0].numel():,} products do not fit into 32 bits")
    if largest <= largest_weight * largest_input or 2 * largest <= _PAIR:
        return product
    return Halves(product)
