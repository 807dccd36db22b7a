"""Convolutions of a training step on a CPU, where torch's own way takes many times as long.

What comes out is the same, and mostly to the last bit; gradients sum in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POINTWISE = 1 << 22  # multiplications up to which a matrix product beats oneDNN's convolution


def convolve(layer: nn.Conv2d, inputs: Tensor, weight: Tensor) -> Tensor:
    """Convolve in a training step.

    Args:
        layer: gives geometry, bias and, with its own weight, the memory layout.
        inputs: [N, C, H, W] or [C, H, W].
        weight: [K, C / groups, h, w], in place of the layer's own.

    Returns:
        [N, K, H', W'] or [K, H', W'].
    """
    geometry = layer.stride, layer.dilation, layer.groups
    if inputs.device.type == "cpu" and inputs.dim() == 4 and layer.padding_mode == "zeros":
        if unsafe(layer, inputs):
            height, width = layer.stride
            return F.conv2d(inputs[:, :, ::height, ::width], weight, layer.bias)
        if inputs.shape[1] == 1:
            inputs = _laid_out(layer, inputs)
        if _larger_than_map(layer, inputs):
            # oneDNN has no fast gradient of the weights there: with 128 maps of 512 channels and
            # 2x2 pixels a step takes 30 ms, and 2 ms where the zeros are there already
            height, width = map(int, layer.padding)
            padded = F.pad(inputs, (width, width, height, height))
            stride, dilation, groups = geometry
            return F.conv2d(padded, weight, layer.bias, stride, 0, dilation, groups)
        if _small_product(layer, inputs):
            product = F.linear(inputs.permute(0, 2, 3, 1), weight.flatten(1), layer.bias)
            return product.permute(0, 3, 1, 2)
    outputs: Tensor = layer._conv_forward(inputs, weight, layer.bias)
    return outputs


def unsafe(layer: nn.Conv2d, inputs: Tensor) -> bool:
    """Say whether torch's gradient of the weights may write outside of its memory.

    It does for 1x1 convolutions with strides, fewer than 8 input channels and channels last (torch
    2.15 on AVX2 ends in "double free or corruption"). Without the pixels that strides leave out it
    is a plain product, of the same numbers.
    """
    return (
        layer.kernel_size == (1, 1)
        and layer.padding in ((0, 0), "valid")
        and max(layer.stride) > 1
        and layer.groups == 1
        and layer.in_channels < 8
        and inputs.device.type == "cpu"
        and inputs.dim() == 4
        and layer.padding_mode == "zeros"
    )


def _laid_out(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Lay maps of one channel out as the layer's weights are.

    They are laid out both ways at once; torch then takes channels for the last dimension only
    where the strides say so, and what it computes in stays that of all layers after this one.
    """
    count, _, height, width = inputs.shape
    if layer.weight.stride(1) != 1 or height * width == 1:
        return inputs
    strides = height * width, 1, width, 1
    return inputs.contiguous().as_strided((count, 1, height, width), strides)


def _larger_than_map(layer: nn.Conv2d, inputs: Tensor) -> bool:
    """Say whether the layer is depthwise with a kernel larger than the maps, and zeros around."""
    if isinstance(layer.padding, str) or not layer.groups == layer.in_channels > 1:
        return False
    height, width = inputs.shape[2:]
    return height < layer.kernel_size[0] or width < layer.kernel_size[1]


def _small_product(layer: nn.Conv2d, inputs: Tensor) -> bool:
    """Say whether the layer is a small matrix product of channels that lie side by side."""
    if not layer.kernel_size == layer.stride == (1, 1) or layer.groups > 1:
        return False
    small = inputs.numel() * layer.out_channels <= POINTWISE
    return (
        small
        and layer.padding in ((0, 0), "valid", "same")
        and inputs.is_contiguous(memory_format=torch.channels_last)
    )
