"""One quantized layer on integer kernels: 8-bit codes in, 32-bit sums, codes or floats out.

A layer computes x w + b with x = s_x (c_x - z) and w = s_w c_w, so that

    y = a s_x s_w + b,   a = sum (c_x - z) c_w   exact in 32 bits,

and batch norm behind it is one more affine map of each output channel: it goes into the scale and
the shift of the channel. What the next layer's quantizer does, divide by its step, round half to
even and clip, is done on y before it is written, so that no float feature map arises.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq_env.quantization.kernel_check import exact_weights
from haq_env.quantization.layers import QuantLayer, Slot
from haq_env.quantization.linear import LinearQuantizer
from haq_env.quantization.lsq import Codes, LSQQuantizer, step_size
from haq_env.quantization.products import (
    After,
    Geometry,
    Halves,
    Product,
    Unsupported,
    exact,
    stored,
)

CHUNK = 1 << 18  # numbers quantized at once: three passes over them stay in the second-level cache


class Grid(NamedTuple):
    """Where a layer's inputs are quantized to.

    Attributes:
        step: distance of neighbouring values, positive.
        largest: largest code, 1 to 255, or to 127 where signed.
        lowest: smallest code: 0, or where signed -largest or one less.
    """

    step: float
    largest: int
    lowest: int

    @classmethod
    def of(cls, slot: Slot) -> Grid:
        """Return the grid of a layer's inputs at its present bits.

        Raises:
            Unsupported: the layer is not quantized, or not to a uniform grid.
        """
        quantizer, bits = slot.quantizer, slot.a_bits
        if type(quantizer) not in (LinearQuantizer, LSQQuantizer):
            raise Unsupported(f"the quantizer of layer {slot.name!r} has no common step")
        if not (slot.w_bits and bits):
            raise Unsupported(f"layer {slot.name!r} is in float")
        if isinstance(quantizer, LSQQuantizer):
            low, high = Codes.of(bits, quantizer.signed)
            return cls(step_size(quantizer.step_of_inputs(bits)).item(), high, low)
        linear = cast(LinearQuantizer, quantizer)
        largest: int = 2 ** (bits - linear.signed) - 1
        step = linear.activation_clip[bits - 1] / largest
        return cls(step, largest, -largest if linear.signed else 0)

    @property
    def zero(self) -> int:
        """The stored code of zero: no larger than need be, so that few pairs saturate."""
        return self.largest + 1 if self.lowest else 0

    @property
    def largest_stored(self) -> int:
        """The largest stored code."""
        return self.zero + self.largest

    def encode(self, inputs: Tensor) -> Tensor:
        """Return the stored codes of float inputs, uint8, in the same layout."""
        codes = torch.empty_like(inputs, dtype=torch.uint8)
        rows = max(1, CHUNK // max(1, inputs[:1].numel()))
        scratch = torch.empty_like(inputs[:rows])
        for start in range(0, len(inputs), rows):
            part = inputs[start : start + rows]
            work = torch.div(part, self.step, out=scratch[: len(part)])
            work.round_().clamp_(self.lowest, self.largest)
            codes[start : start + rows] = stored(work, self.zero)
        return codes


class Kernel:
    """A layer, the batch norm and the activation behind it, and the next layer's quantizer.

    Args:
        layer: with a uniform grid and bits; its weights are read now.
        norm: batch norm on the layer's output, in evaluation mode.
        ceiling: None without an activation, infinity for ReLU, 6 for ReLU6.
        output: the grid of the one layer that takes the output; None to put out floats.

    Raises:
        Unsupported: a kind of layer, padding or quantizer without an integer form.
    """

    def __init__(
        self,
        layer: QuantLayer,
        norm: _BatchNorm | None = None,
        ceiling: float | None = None,
        output: Grid | None = None,
    ) -> None:
        self.input = Grid.of(layer.slot)
        geometry = _geometry(layer)
        with torch.no_grad():
            weight = layer.slot.quantized(layer.weight)
            step = _weight_step(layer.slot, weight)
            codes = (weight / step).round_().to(torch.int8)
            scale, shift = _affine(layer, norm, self.input.step * step)
            if output is not None:
                scale, shift = scale / output.step, shift / output.step
        self._product = Product(
            codes,
            self.input.zero,
            geometry,
            scale.float(),
            shift.float(),
            _after(ceiling, output),
        )
        self._compute = self._exactly(self._product)

    def __call__(self, inputs: Tensor, added: Tensor | None = None) -> Tensor:
        """Run the layer.

        Args:
            inputs: stored codes on this layer's input grid (uint8), or floats.
            added: floats of the output's shape, added before the activation; may be overwritten.
        """
        geometry, after = self._product.geometry, self._product.after
        layout = torch.contiguous_format if geometry is None else torch.channels_last
        codes = inputs.contiguous(memory_format=layout)
        if codes.dtype != torch.uint8:
            codes = self.input.encode(codes)
        if added is None:
            return self._compute(codes)
        if added.dtype == torch.float32 and tuple(added.shape) == self._output_shape(codes):
            return self._compute(codes, added.contiguous(memory_format=layout))
        # what is broadcast is no sum of maps, and the kernel would read past its end
        return after.apply(self._sums(codes) + added)

    @cached_property
    def _sums(self) -> Product | Halves:
        """The layer without what follows a sum."""
        return self._exactly(replace(self._product, after=After()))

    def _exactly(self, product: Product) -> Product | Halves:
        geometry = product.geometry
        groups = 1 if geometry is None else geometry[3]
        depthwise = groups == len(product.weight) > 1 and product.weight.shape[1] == 1
        return exact(product, self.input.largest_stored, exact_weights(depthwise))

    def _output_shape(self, codes: Tensor) -> tuple[int, ...]:
        assert self._product.geometry is not None
        stride, padding, dilation, _ = self._product.geometry
        weight = self._product.weight
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                codes.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
            )
        ]
        return len(codes), len(weight), *size


def _weight_step(slot: Slot, quantized: Tensor) -> float:
    if slot.w_bits == 1:
        return float(quantized.abs().max()) or 1.0
    if isinstance(slot.quantizer, LSQQuantizer):
        return step_size(slot.quantizer.step_of_weights(slot.w_bits)).item()
    quantizer = cast(LinearQuantizer, slot.quantizer)
    largest: int = 2 ** (slot.w_bits - 1) - 1
    return quantizer.weight_clip[slot.w_bits - 1] / largest


def _affine(layer: QuantLayer, norm: _BatchNorm | None, step: float) -> tuple[Tensor, Tensor]:
    """Return scale and shift of every output channel's sums, float64 [K] each."""
    channels = len(layer.weight)
    scale = torch.full((channels,), step, dtype=torch.float64)
    bias = cast("Tensor | None", layer.bias)
    shift = torch.zeros_like(scale) if bias is None else bias.double()
    if norm is not None:
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        gain = (variance.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            gain = gain * norm.weight.double()
        scale, shift = scale * gain, (shift - mean.double()) * gain
        if norm.bias is not None:
            shift = shift + norm.bias.double()
    return scale, shift


def _after(ceiling: float | None, output: Grid | None) -> After:
    """Return what is done to a sum after scale and shift."""
    if output is None:
        if ceiling is None:
            return After()
        return After("relu") if ceiling == float("inf") else After("hardtanh", (0.0, ceiling))
    low = output.lowest if ceiling is None else 0
    high = min(output.largest, float("inf") if ceiling is None else ceiling / output.step)
    return After("hardtanh", (float(low), float(high)), output.zero)


def _geometry(layer: QuantLayer) -> Geometry | None:
    """Return stride, padding, dilation and groups of a convolution, None of a linear layer."""
    if isinstance(layer, nn.Linear):
        return None
    if not isinstance(layer, nn.Conv2d):
        raise Unsupported(f"layer {layer.slot.name!r} is no convolution and no linear layer")
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise Unsupported(f"layer {layer.slot.name!r} has padding other than a number of zeros")
    return list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
