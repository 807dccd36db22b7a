"""A network whose layers' bits can be switched at run time, and restored after finetuning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from haq_env.errors import InputError
from haq_env.layers import LayerTable
from haq_env.networks.attention import fastpath_off, has_fastpath
from haq_env.networks.copying import copied
from haq_env.policy import ACTIVATION, Bits, as_policy, uniform
from haq_env.quantization import QUANTIZERS
from haq_env.quantization.attributes import plain_attributes, put_back, put_tensors_back, tensors
from haq_env.quantization.batchnorm import BATCH, recalibrate_batchnorm
from haq_env.quantization.fusion import fuse
from haq_env.quantization.layers import QuantLayer, Slot, WeightCache, make_quantized
from haq_env.quantization.recording import record_inputs
from haq_env.quantization.scheme import CentroidUpdate, ClipRule, Settings

CACHE_BYTES = 1 << 29  # quantized copies of the pretrained weights, all widths together


class Errors(NamedTuple):
    """Mean squared quantization errors found at calibration, for sensitivities.

    Attributes:
        weights: float64 [L, 8], layer and bits - 1.
        activations: float64 [L, 8]; infinite where a width cannot be used.
    """

    weights: NDArray[np.float64]
    activations: NDArray[np.float64]


class QuantizedNetwork(nn.Module):
    """A copy of a float network whose layers quantize their weights and inputs.

    Built once: the clips or codebooks of every layer are found for all widths from the float
    weights and from one float forward of the calibration images. After that a policy is two
    integers for each layer. The parameters stay the float ones under their own names, so the
    state dict is that of the float network, and optimizers work on `parameters()`. These are
    followed by what quantizers learn, which is trained, restored, copied and moved like them, and
    is not in the state dict.

    The network starts in float mode and in evaluation mode. Without gradients, quantized weights
    come from a cache from `restore` until the weights change or a forward pass with gradients
    is run, which may be part of a training step. Changes made outside of training through
    `.data`, which torch does not count, need `restore` or `weights_changed` afterwards.

    Args:
        module: the float network; it is copied and not changed.
        layers: the layers to quantize, by module path.
        quantizer: a name in `haq_env.quantization.QUANTIZERS`.
        clip: how clips are chosen, see `Settings`.
        centroid_update: how k-means centroids follow an optimizer step, see `Settings`.
        calibration_images: [N, ...], as the network takes them; used once and not kept.
        cache_bytes: memory limit of the cache of quantized weights.

    Attributes:
        module: the network inside, with quantized layers.
        layers: the layer table.
        channels_last: the memory layout; the plain one where a forward needs it.
        bits: the present policy, int64 [L, 2]; None in float mode.
        errors: mean squared errors of the float weights and inputs at every width.
        learned: the quantizers that are modules, in the order of the layers, with their parameters.

    Raises:
        InputError: a layer does not exist, is of a kind that cannot be quantized, is not reached
            by a forward pass, holds or receives NaN, or receives negative inputs although the
            table calls them non-negative.
    """

    # under inference mode copies would be tensors that can never be trained nor count versions
    @torch.inference_mode(False)
    def __init__(
        self,
        module: nn.Module,
        layers: LayerTable,
        *,
        quantizer: str = "linear",
        clip: ClipRule = "mse",
        centroid_update: CentroidUpdate = "haq",
        calibration_images: Tensor,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__()
        settings = Settings(clip, centroid_update)
        make = QUANTIZERS[quantizer]
        self.module: nn.Module = copied(module)
        self._fastpath = has_fastpath(self.module)
        self.channels_last = True
        _lay_out(self.module, torch.channels_last)
        self.eval()
        self.layers = layers
        self.quantizer = quantizer
        self.bits: Bits | None = None
        found = _find(self.module, layers)
        try:
            inputs = record_inputs(self, found, calibration_images)
        except RuntimeError:  # a forward may take views that only the plain layout has
            self.channels_last = False
            _lay_out(self.module, torch.contiguous_format)
            inputs = record_inputs(self, found, calibration_images)
        cache = WeightCache(cache_bytes)
        self._layers: list[QuantLayer] = []
        for layer, part, sample in zip(layers, found.values(), inputs, strict=True):
            low = float(sample.min())
            if low < 0 and not layer.signed_input:
                raise InputError(
                    f"layer {layer.name!r} is said to have non-negative inputs, but calibration "
                    f"found {low:.3g}: set signed_input."
                )
            slot = Slot(layer.name, make(layer, part.weight, sample, settings), cache)
            self._layers.append(make_quantized(part, slot))
        fuse(self.module)
        quantizers = [layer.slot.quantizer for layer in self._layers]
        # beside the float network and not in it, so that its names and its state stay its own
        self.learned = nn.ModuleList(one for one in quantizers if isinstance(one, nn.Module)).eval()
        self._pretrained = {name: each.detach().clone() for name, each in tensors(self).items()}
        self._attributes = plain_attributes(self.module)
        self.errors = Errors(
            np.stack([one.weight_mse for one in quantizers]),
            np.stack([one.activation_mse for one in quantizers]),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Run the network on images [N, ...] with the present bits."""
        inputs = self.laid_out(images)
        if inputs is images:
            inputs = images.clone()  # a forward may write into it, and the images are used again
        with fastpath_off() if self._fastpath else nullcontext():
            output: Tensor = self.module(inputs)
        return output

    def laid_out(self, images: Tensor) -> Tensor:
        """Return images [N, ...] in the memory layout that the network computes in."""
        if images.dim() != 4:
            return images
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def probe(self, width: int) -> Bits:
        """Return the policy of one width for all, or the nearest that the quantizers define."""
        bits = uniform(len(self.layers), width, width)
        for row, layer in enumerate(self._layers):
            for side, allowed in enumerate(layer.slot.widths):
                if allowed:
                    bits[row, side] = min(max(width, allowed.start), allowed.stop - 1)
        return bits

    def set_policy(self, bits: ArrayLike | None) -> None:
        """Give every layer its bits; None switches quantization off.

        Args:
            bits: int [L, 2], weight and activation bits, 1 to 8.

        Raises:
            InputError: wrong shape or range, or a width that a layer's quantizer does not have,
                such as one bit for signed activations.
        """
        if bits is None:
            self.float_mode()
            return
        checked = as_policy(bits, len(self.layers))
        self._check_widths(checked)
        self.bits = checked.copy()
        for layer, (w_bits, a_bits) in zip(self._layers, self.bits.tolist(), strict=True):
            slot = layer.slot
            if slot.w_bits != w_bits:
                slot.quantizer.reset()
            slot.w_bits = w_bits
            slot.a_bits = a_bits if slot.quantizer.activation_bits else 0

    @property
    def quantized_layers(self) -> tuple[QuantLayer, ...]:
        """The layers that a policy has bits for, in its order."""
        return tuple(self._layers)

    def float_mode(self) -> None:
        """Switch quantization off: the network computes what the float one does."""
        self.bits = None
        for layer in self._layers:
            layer.slot.w_bits = layer.slot.a_bits = 0
            layer.slot.quantizer.reset()

    def restore(self) -> None:
        """Copy all pretrained parameters and buffers back in place; the policy stays.

        What quantizers have learned becomes what it was after calibration, at every width.
        Plain attributes come back, too: numbers, texts, tensors, random generators, containers of
        such. Parameters keep their identity, so an optimizer may go on with them; its own state
        (momentum) and the gradients are not touched.
        """
        put_tensors_back(self, self._pretrained)
        put_back(self.module, self._attributes)
        for layer in self._layers:
            layer.slot.restored(layer.weight)

    def weights_changed(self) -> None:
        """Say that weights were changed behind torch's back, through `.data`."""
        for layer in self._layers:
            layer.slot.may_change()

    def quantize_weights(self) -> None:
        """Quantize now what passes without gradients would quantize when they come to it."""
        with torch.no_grad():
            for layer in self._layers:
                if layer.slot.w_bits:
                    layer.slot.quantized(layer.weight)

    def after_step(self) -> None:
        """To be called after every optimizer step: k-means weights return to their clusters."""
        for layer in self._layers:
            layer.slot.may_change()
            if layer.slot.w_bits:
                layer.slot.quantizer.after_step(layer.weight, layer.slot.w_bits)

    def recalibrate_batchnorm(self, images: Tensor, batch_size: int = BATCH) -> None:
        """Estimate all batch-norm statistics anew with the present bits.

        Args:
            images: [N, ...]; a few hundred do, and the same ones every time.
            batch_size: images in a batch, positive.
        """
        recalibrate_batchnorm(self, images, batch_size)

    @torch.inference_mode(False)
    def clone(self) -> QuantizedNetwork:
        """Return an independent copy with the same weights, policy and pretrained state."""
        return copy.deepcopy(self)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict, with the float network's keys."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of the float network; `restore` still knows the former weights."""
        return self.module.load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # the pretrained state moves along, so that restoring never crosses devices
        self._pretrained = {name: fn(kept) for name, kept in self._pretrained.items()}
        pretrained = [layer.slot.is_pretrained(layer.weight) for layer in self._layers]
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for layer, was in zip(self._layers, pretrained, strict=True):
            layer.slot.note_pretrained(layer.weight, was)  # only now its quantizer has moved, too
        return result

    def _check_widths(self, bits: Bits) -> None:
        for row, layer in enumerate(self._layers):
            for side, allowed in enumerate(layer.slot.widths):
                if allowed and bits[row, side] not in allowed:
                    signed = side == ACTIVATION and self.layers[row].signed_input
                    raise InputError(
                        f"layer {layer.slot.name!r}: {bits[row, side]} "
                        f"{('weight', 'activation')[side]} bits are not possible, allowed: "
                        f"{allowed.start} to {allowed.stop - 1}"
                        f"{' (its inputs are signed)' * signed}."
                    )


def _lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Lay 4-D tensors out; convolutions on a CPU are fastest with channels last."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=layout)


def _find(module: nn.Module, layers: LayerTable) -> dict[str, nn.Module]:
    """Return the layers by name, in the table's order."""
    parts = dict(module.named_modules())
    missing = [name for name in layers.names if name not in parts]
    if missing:
        raise InputError(
            f"network {layers.network!r} has no layer {missing[0]!r}; it has, for example, "
            f"{', '.join(name for name, part in parts.items() if hasattr(part, 'weight'))[:200]}."
        )
    for layer in layers:
        part = parts[layer.name]
        if not isinstance(part, (nn.Conv2d, nn.Linear)):
            raise InputError(
                f"layer {layer.name!r}: only nn.Conv2d and nn.Linear can be quantized, "
                f"not {type(part).__name__}."
            )
        if part.weight.numel() != layer.weights:
            raise InputError(
                f"layer {layer.name!r} has {part.weight.numel():,} weights, and {layer.weights:,} "
                "in the layer table, so costs would be those of another network."
            )
    return {name: parts[name] for name in layers.names}
