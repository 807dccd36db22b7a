"""Learned step size quantization: the steps of a uniform grid are trained with the weights.

A number v becomes s * round(clip(v / s, -Q_N, Q_P)), and the loss has a gradient by the step s as
well as by v. Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, section 2.

A finetuning inside a search is brief, so where the steps start matters: by default it is the least
squared error, as in Bhalgat et al., "LSQ+", CVPR Workshops 2020; the clip rule ``"lsq"`` is the
paper's own start.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq_env.errors import InputError
from haq_env.layers import Layer
from haq_env.policy import ALL_BITS, MAX_BITS, MIN_BITS
from haq_env.quantization.calibration import clip_table, subsample
from haq_env.quantization.scheme import ClipRule, Settings


class Codes(NamedTuple):
    """The whole numbers that values are rounded to.

    Attributes:
        low: the smallest, -Q_N in the paper.
        high: the largest, Q_P in the paper; positive.
    """

    low: int
    high: int

    @classmethod
    def of(cls, bits: int, signed: bool) -> Codes:
        """Return the codes of a width: all 2^bits of them (section 2).

        Raises:
            InputError: fewer than 1 bit, or than 2 where codes are signed, or more than 8.
        """
        if not MIN_BITS + signed <= bits <= MAX_BITS:
            raise InputError(
                f"bits must be {MIN_BITS + signed} to {MAX_BITS}, not {bits!r}"
                f"{': one signed bit has no positive code.' if signed and bits == 1 else '.'}"
            )
        if signed:
            return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return cls(0, 2**bits - 1)


def quantize(values: Tensor, step: Tensor, codes: Codes, scale: float) -> Tensor:
    """Round values to multiples of a step, with the gradients of the paper (equations 1 to 3, 5).

    Args:
        values: any shape, floating point; never changed.
        step: a number, [] like the values. Its sign does not count, and zero counts as the
            smallest positive number: a step of the optimizer may lead there.
        codes: what the multiples are limited to.
        scale: what the gradient by the step is multiplied by, see `gradient_scale`.

    Returns:
        A new tensor like `values`.
    """
    if torch.is_grad_enabled() and (values.requires_grad or step.requires_grad):
        return cast(Tensor, _LearnedStep.apply(values, step, codes, scale))
    size = step_size(step)
    return (values / size).clamp_(*codes).round_().mul_(size)


def step_size(step: Tensor) -> Tensor:
    """Return what a step counts as, positive, see `quantize`."""
    return step.abs().clamp_min_(torch.finfo(step.dtype).tiny)


def gradient_scale(numbers: int, codes: Codes) -> float:
    """Return 1 / sqrt(N Q_P), with which a step moves as fast as a weight does (section 2.2).

    Args:
        numbers: weights of the layer, or features that enter it for one image.
        codes: of the present width.
    """
    return 1 / math.sqrt(numbers * codes.high)


class LSQQuantizer(nn.Module):
    """Quantization of one layer with a step for the weights and one for the inputs, both learned.

    There is a step for every width. It starts where the largest code stands for the clip of the
    float weights, or of the sample of inputs.

    Args:
        layer: what the network says of the layer; its name is used in error messages.
        weight: the float weights.
        inputs: a sample of the layer's float inputs, any shape.
        settings: the clip rule.

    Attributes:
        weight_step: steps of the weights by width, from 2 bits on, [7].
        activation_step: steps of the inputs by width, [8], or [7] where they are signed.
        signed: whether inputs have signed codes.
        weight_mse: see `LayerQuantizer`; infinite at 1 bit, which has no positive code.
        activation_mse: see `LayerQuantizer`.
        activation_bits: 1 to 8, or 2 to 8 where the inputs are signed.

    Raises:
        InputError: NaN or infinite weights or inputs.
    """

    weight_bits = range(MIN_BITS + 1, MAX_BITS + 1)
    activation_bits = ALL_BITS

    def __init__(self, layer: Layer, weight: Tensor, inputs: Tensor, settings: Settings) -> None:
        super().__init__()
        self.signed = layer.signed_input
        self.activation_bits = range(MIN_BITS + self.signed, MAX_BITS + 1)
        name, like = repr(layer.name), weight.detach()
        steps, self.weight_mse = _calibrated(weight, True, settings.clip, f"weights of {name}")
        self.weight_step = nn.Parameter(steps.to(like))
        steps, self.activation_mse = _calibrated(
            inputs, self.signed, settings.clip, f"inputs of {name}", activations=True
        )
        self.activation_step = nn.Parameter(steps.to(like))

    def weight(self, weight: Tensor, bits: int) -> Tensor:
        """Return the quantized weights; see `quantize`."""
        codes = Codes.of(bits, signed=True)
        scale = gradient_scale(weight.numel(), codes)
        return quantize(weight, self.step_of_weights(bits), codes, scale)

    def activation(self, inputs: Tensor, bits: int) -> Tensor:
        """Return the quantized inputs [N, ...]; see `quantize`."""
        codes = Codes.of(bits, self.signed)
        # of one image: the loss is a mean over them, and a step's gradient so for every batch size
        features = max(1, inputs.numel() // max(1, len(inputs)))
        scale = gradient_scale(features, codes)
        return quantize(inputs, self.step_of_inputs(bits), codes, scale)

    def step_of_weights(self, bits: int) -> Tensor:
        """Return the parameter that is the step of a width, []."""
        return self.weight_step[bits - self.weight_bits.start]

    def step_of_inputs(self, bits: int) -> Tensor:
        """Return the parameter that is the step of a width, []."""
        return self.activation_step[bits - self.activation_bits.start]

    def clips_like_relu(self, ceiling: float) -> bool:
        """Tell whether it is a plain ReLU and codes are unsigned: a learned clip has no bound."""
        return not self.signed and math.isinf(ceiling)

    def after_step(self, weight: Tensor, bits: int) -> None:
        """Do nothing: the float weights and the steps are the master copy."""

    def reset(self) -> None:
        """Do nothing: `QuantizedNetwork.restore` brings the steps back."""


def _calibrated(
    values: Tensor, signed: bool, rule: ClipRule, name: str, *, activations: bool = False
) -> tuple[Tensor, NDArray[np.float64]]:
    """Return the first step of every width that there is, and the errors at 1 to 8 bits."""
    whole = values.detach().float().cpu().numpy()
    clips = clip_table(whole, signed, rule, activations=activations, name=name).clip
    sample = torch.from_numpy(np.ascontiguousarray(subsample(whole)))
    steps, mse = [], np.full(MAX_BITS, np.inf)
    for bits in range(MIN_BITS + signed, MAX_BITS + 1):
        codes = Codes.of(bits, signed)
        steps.append(torch.tensor(clips[bits - MIN_BITS] / codes.high, dtype=torch.float32))
        error = quantize(sample, steps[-1], codes, 1.0).sub_(sample)
        mse[bits - MIN_BITS] = float(error.square_().mean(dtype=torch.float64))
    return torch.stack(steps), mse


class _LearnedStep(torch.autograd.Function):
    """The quantizer's backward pass: equation 3 for the step, equation 5 for the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, codes: Codes, scale: float) -> Tensor:
        # only what is kept anyway is saved, and divided once more on the way back
        size = step_size(step)
        ctx.save_for_backward(values, step, size)
        ctx.codes, ctx.scale = codes, scale
        return (values / size).clamp_(*codes).round_().mul_(size)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        values, step, size = ctx.saved_tensors
        (gradient,) = grads
        scaled = values / size
        by_step = scaled.clamp(*ctx.codes).round_().sub_(_inside(scaled, scaled, ctx.codes))
        total = by_step.mul_(gradient).sum().mul_(ctx.scale).mul_(step.sign())
        return _inside(gradient, scaled, ctx.codes), total, None, None


def _inside(kept: Tensor, scaled: Tensor, codes: Codes) -> Tensor:
    """Return numbers where scaled values lie strictly between the limits, and 0 elsewhere."""
    # one vectorised pass, where comparisons and their product would be four
    return cast(Tensor, torch.ops.aten.hardtanh_backward(kept, scaled, *codes))
