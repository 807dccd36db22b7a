"""Linear (uniform) fake quantization with straight-through gradients, as in HAQ.

Weights and signed activations use the symmetric narrow grid: codes -n to n, n = 2^(bits-1) - 1,
step = clip / n. Non-negative activations use codes 0 to n, n = 2^bits - 1. Rounding is half to
even. Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed Precision",
CVPR 2019, section 3; 1-bit weights: Rastegari et al., "XNOR-Net", ECCV 2016.
"""

from __future__ import annotations

import enum
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq_env.errors import InputError
from haq_env.layers import Layer
from haq_env.policy import ALL_BITS, MAX_BITS, MIN_BITS
from haq_env.quantization.calibration import clip_table
from haq_env.quantization.scheme import Settings


class Gradient(enum.Enum):
    """What the backward pass of a fake quantizer does."""

    STE = "ste"  # the gradient passes everywhere
    STE_CLIP = "ste_clip"  # it passes strictly inside the clip and is zero elsewhere


def quantize_weight(
    weight: Tensor, clip: float, bits: int, gradient: Gradient = Gradient.STE
) -> Tensor:
    """Fake-quantize weights to the symmetric narrow grid.

    At one bit every weight becomes +-mean|weight|, zero counting as positive, and `clip` is
    not used: that is the least-squares choice and follows the weights in training.

    Args:
        weight: any shape, floating point.
        clip: largest magnitude that is kept, positive.
        bits: width, 1 to 8.
        gradient: HAQ passes the gradient of clipped weights too, hence the default.

    Returns:
        A new tensor like `weight`, with at most 2^bits - 1 distinct values (2 at one bit).

    Raises:
        InputError: the width or the clip is out of range.
    """
    _check(clip, bits)
    if bits == 1:
        return cast(Tensor, _Binarize.apply(weight))
    return _quantize(weight, -clip, clip, clip / (2 ** (bits - 1) - 1), gradient)


def quantize_activation(
    inputs: Tensor,
    clip: float,
    bits: int,
    signed: bool = False,
    gradient: Gradient = Gradient.STE_CLIP,
) -> Tensor:
    """Fake-quantize activations, to 0..clip or, if they are signed, to -clip..clip.

    Args:
        inputs: any shape, floating point; never changed.
        clip: largest magnitude that is kept, positive.
        bits: width, 1 to 8; at least 2 for signed activations.
        signed: whether one bit is spent on the sign.
        gradient: by default zero for clipped inputs.

    Returns:
        A new tensor like `inputs`, with at most 2^bits distinct values (2^bits - 1 if signed).

    Raises:
        InputError: the width or the clip is out of range.
    """
    _check(clip, bits)
    if not signed:
        return _quantize(inputs, 0.0, clip, clip / (2**bits - 1), gradient)
    if bits == 1:
        raise InputError("signed activations need at least 2 bits: one bit only holds the sign.")
    return _quantize(inputs, -clip, clip, clip / (2 ** (bits - 1) - 1), gradient)


class LinearQuantizer:
    """Linear quantization of one layer, with clips for every width found once.

    Args:
        layer: what the network says of the layer; its name is used in error messages.
        weight: the float weights.
        inputs: a sample of the layer's float inputs, any shape.
        settings: the clip rule.

    Attributes:
        weight_clip: clip of the weights at 1 to 8 bits, 8 numbers (mean|w| at one bit).
        activation_clip: clip of the inputs at 1 to 8 bits, 8 numbers.
        weight_mse: see `LayerQuantizer`.
        activation_mse: see `LayerQuantizer`.
        activation_bits: 1 to 8, or 2 to 8 where the inputs are signed.

    Raises:
        InputError: NaN or infinite weights or inputs.
    """

    weight_bits = activation_bits = ALL_BITS

    def __init__(self, layer: Layer, weight: Tensor, inputs: Tensor, settings: Settings) -> None:
        self.signed = layer.signed_input
        self.activation_bits = range(MIN_BITS + self.signed, MAX_BITS + 1)
        weights = clip_table(
            _numpy(weight), signed=True, rule=settings.clip, name=f"weights of {layer.name!r}"
        )
        activations = clip_table(
            _numpy(inputs),
            signed=self.signed,
            rule=settings.clip,
            activations=True,
            name=f"inputs of {layer.name!r}",
        )
        # Python floats: a tensor would need .item() in every forward, a synchronisation on a GPU
        self.weight_clip: list[float] = weights.clip.tolist()
        self.activation_clip: list[float] = activations.clip.tolist()
        self.weight_mse = weights.mse
        self.activation_mse = activations.mse.copy()
        self.activation_mse[: self.activation_bits.start - MIN_BITS] = np.inf

    def weight(self, weight: Tensor, bits: int) -> Tensor:
        """Return the quantized weights; see `quantize_weight`."""
        return quantize_weight(weight, self.weight_clip[bits - 1], bits)

    def activation(self, inputs: Tensor, bits: int) -> Tensor:
        """Return the quantized inputs; see `quantize_activation`."""
        return quantize_activation(inputs, self.activation_clip[bits - 1], bits, self.signed)

    def clips_like_relu(self, ceiling: float) -> bool:
        """Tell whether unsigned codes end below a ReLU's bound; see `LayerQuantizer`."""
        return not self.signed and max(self.activation_clip) <= ceiling

    def after_step(self, weight: Tensor, bits: int) -> None:
        """Do nothing: the float weights are the master copy."""

    def reset(self) -> None:
        """Do nothing: clips belong to the pretrained network, not to a policy."""


def _check(clip: float, bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(f"bits must be {MIN_BITS} to {MAX_BITS}, not {bits!r}.")
    if not 0 < clip < float("inf"):
        raise InputError(f"a clip must be positive and finite, not {clip!r}.")


def _numpy(tensor: Tensor) -> NDArray[np.floating[Any]]:
    return cast("NDArray[np.floating[Any]]", tensor.detach().float().cpu().numpy())


def _quantize(x: Tensor, low: float, high: float, step: float, gradient: Gradient) -> Tensor:
    if gradient is Gradient.STE:
        return cast(Tensor, _Through.apply(x, low, high, step))
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x.clamp(low, high).div_(step).round_().mul_(step)
    # hardtanh saves only its input, which the layer before keeps anyway; rounding then works in
    # place on hardtanh's output and saves nothing: the cheapest training form measured
    clipped = torch.nn.functional.hardtanh(x, low, high)
    return cast(Tensor, _RoundInPlace.apply(clipped, step))


class _Through(torch.autograd.Function):
    """Clip and round; gradient 1 everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, step: float) -> Tensor:
        return x.clamp(low, high).div_(step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


class _RoundInPlace(torch.autograd.Function):
    """Round to multiples of the step, in place; gradient 1 everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float) -> Tensor:
        ctx.mark_dirty(x)
        return x.div_(step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


class _Binarize(torch.autograd.Function):
    """sign(w) * mean|w| with sign(0) = +1; gradient 1 everywhere."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        scale = weight.abs().mean()
        return torch.where(weight >= 0, scale, -scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return cast(Tensor, grads[0])
