"""What a quantizer is to the network: an object that quantizes one layer at any width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError, unknown_name
from haq_env.policy import ALL_BITS, MAX_BITS, MIN_BITS

if TYPE_CHECKING:
    from torch import Tensor

ClipRule = Literal["mse", "haq-kl", "max", "lsq"]
CentroidUpdate = Literal["haq", "deep-compression"]


@dataclass(frozen=True)
class Settings:
    """What a user can choose about a quantizer.

    Attributes:
        clip: how the clips of uniform grids are chosen, or start where they are learned:
            ``"mse"`` (least squared error), ``"haq-kl"`` (the rule of HAQ), ``"max"`` (nothing is
            clipped) or ``"lsq"`` (the start of learned step sizes).
        centroid_update: what an optimizer step does to a centroid of k-means weights: ``"haq"``
            moves it by the mean of its members' steps, ``"deep-compression"`` by their sum.

    Raises:
        InputError: an unknown clip rule or centroid update.
    """

    clip: ClipRule = "mse"
    centroid_update: CentroidUpdate = "haq"

    def __post_init__(self) -> None:
        if self.clip not in get_args(ClipRule):
            raise unknown_name("clip rule", self.clip, get_args(ClipRule))
        if self.centroid_update not in get_args(CentroidUpdate):
            raise unknown_name("centroid update", self.centroid_update, get_args(CentroidUpdate))


class LayerQuantizer(Protocol):
    """Quantizes the weights and the input activations of one layer, at 1 to 8 bits.

    A factory with the arguments (layer, weight, inputs, settings) builds it once from the float
    weights and a sample of the layer's float inputs; after that every width is ready.

    One that has something to learn is an `nn.Module` as well, whose parameters and buffers lie on
    the device of the weights. Finetuning trains its parameters with those of the network, with
    weight decay from two dimensions on; `QuantizedNetwork.restore` brings all of them back as they
    were after calibration. Every width wants values of its own, so a parameter is a table by width;
    entries that were not used have a gradient of zero, and stay.

    Attributes:
        weight_mse: mean squared error of the float weights at 1 to 8 bits, float64 [8]; infinite
            where a width cannot be used.
        activation_mse: mean squared error of the sampled inputs at 1 to 8 bits, float64 [8];
            infinite where a width cannot be used, zero where activations stay in float.
        weight_bits: the weight widths that can be used. As a class attribute it bounds what a
            task may choose (`widths_of`); an object's own may be narrower.
        activation_bits: likewise; empty where activations stay in float. Where the class says so,
            a task has no activation bits to choose, and pays for 8.
    """

    weight_mse: NDArray[np.float64]
    activation_mse: NDArray[np.float64]
    weight_bits: range
    activation_bits: range

    def weight(self, weight: Tensor, bits: int) -> Tensor:
        """Return the quantized weights as a tensor of their own; the gradient passes through."""
        ...

    def activation(self, inputs: Tensor, bits: int) -> Tensor:
        """Return the quantized inputs; the tensor that came is not changed."""
        ...

    def clips_like_relu(self, ceiling: float) -> bool:
        """Tell whether the quantized inputs and their gradient are the same behind a ReLU.

        Args:
            ceiling: bound of the ReLU, infinity for the plain one.
        """
        ...

    def after_step(self, weight: Tensor, bits: int) -> None:
        """Do what the scheme asks for after an optimizer step, in place on the weights."""
        ...

    def reset(self) -> None:
        """Forget what depends on the present policy or on weights that were just replaced."""
        ...


def widths_of(quantizer: Callable[..., LayerQuantizer]) -> tuple[range, range]:
    """Return the weight and activation widths that a quantizer says it has; 1 to 8 if it does not.

    Raises:
        InputError: what it says is no range of widths within 1 to 8.
    """
    found = []
    for name in ("weight_bits", "activation_bits"):
        widths = getattr(quantizer, name, ALL_BITS)
        nothing = name == "activation_bits" and not len(widths)
        inside = isinstance(widths, range) and widths.step == 1 and set(widths) <= set(ALL_BITS)
        if not inside or not (widths or nothing):
            raise InputError(
                f"quantizer {getattr(quantizer, '__name__', quantizer)}: {name} must be a range of "
                f"widths within {MIN_BITS} to {MAX_BITS}, such as range(2, 9), not {widths!r}."
            )
        found.append(widths)
    return found[0], found[1]


def check_finite(values: NDArray[np.floating[Any]], name: str) -> None:
    """Refuse an empty array and one with NaN or infinity, naming whose it is."""
    if values.size == 0:
        raise InputError(f"{name}: there are no values to quantize.")
    # one pass and no mask array: a sum is finite only if every term is (float64 cannot overflow)
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise InputError(f"{name}: NaN or infinite values cannot be quantized.")
