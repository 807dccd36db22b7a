"""A quantized network as a file: what a policy and its finetuning have made of the float one.

The file has the float network's own state dict, in which the weights of quantized layers are those
that the policy leaves, and beside it where every layer's inputs are quantized to. So it needs no
images, no calibration and no search to compute again what was measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from haq_env.errors import InputError
from haq_env.networks import load_network
from haq_env.networks.checkpoint import load_checkpoint, read_metadata, save_tensors
from haq_env.quantization.layers import QuantLayer
from haq_env.quantization.linear import LinearQuantizer, quantize_activation
from haq_env.quantization.lsq import Codes, LSQQuantizer, quantize, step_size
from haq_env.quantization.network import QuantizedNetwork

SCHEMA = 1
_KEY = "quantized"  # of the metadata


class InputQuantizer:
    """A forward pre-hook that quantizes the first input of a layer.

    Args:
        bits: width, 1 to 8; 0 leaves inputs as they are.
        clip: largest magnitude that is kept, positive; of a linear quantizer.
        step: distance of neighbouring values, positive; in place of a clip, of `LSQQuantizer`.
        signed: whether one bit is spent on the sign.
    """

    def __init__(
        self, bits: int, clip: float = 1.0, *, step: float | None = None, signed: bool
    ) -> None:
        self.bits, self.clip, self.step, self.signed = bits, clip, step, signed

    def __call__(
        self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs as the layer is to see them."""
        first = inputs[0] if inputs else named["input"]
        if self.step is None:
            first = quantize_activation(first, self.clip, self.bits, self.signed)
        else:
            codes = Codes.of(self.bits, self.signed)
            first = quantize(first, first.new_tensor(self.step), codes, 1.0)
        return ((first, *inputs[1:]), named) if inputs else ((), {**named, "input": first})


def save_quantized(
    path: str | os.PathLike[str], network: QuantizedNetwork, about: Mapping[str, Any] | None = None
) -> None:
    """Write a network as its present policy and weights are (safetensors).

    Args:
        path: where to; a file that is there is replaced at once.
        network: with a policy.
        about: anything that JSON holds, kept beside it; with ``network``, a name of
            `haq_env.networks`, and ``build``, its arguments, the file needs no module to load.

    Raises:
        InputError: the network is in float mode, a quantized layer shares its weights with another
            layer, or the file cannot be written.
    """
    if network.bits is None:
        raise InputError("a network without a policy is no quantized one: call set_policy first.")
    _check_untied(network)
    tensors = {k: v for k, v in network.state_dict().items() if torch.is_tensor(v)}
    layers = {}
    with torch.no_grad():
        for name, layer in network.module.named_modules(remove_duplicate=False):
            if isinstance(layer, QuantLayer):
                tensors[f"{name}.weight"] = layer.slot.quantized(layer.weight)
                layers[name] = _describe(layer)
    metadata = {**(about or {}), _KEY: {"schema": SCHEMA, "layers": layers}}
    save_tensors(path, tensors, metadata)


def load_quantized(path: str | os.PathLike[str], module: nn.Module | None = None) -> nn.Module:
    """Return the quantized network of a file, in evaluation mode.

    It gives the answers that were measured, up to the order in which a convolution adds floats.
    Its weights are those of the file, and its layers quantize their inputs by forward pre-hooks.
    It is for inference: training would leave the grid of the weights.

    Args:
        path: a file of `save_quantized`.
        module: the same architecture in float, with any weights, which becomes the network; it is
            unchanged if this fails. None builds a named network as the file says.

    Raises:
        InputError: the file is missing, damaged, of another architecture, holds no quantized
            network, or does not say how to build it; or the module is quantized already.
    """
    if not (module is None or isinstance(module, nn.Module)):
        raise InputError(
            f"module must be a torch.nn.Module, not {type(module).__name__}: call your factory."
        )
    metadata = read_metadata(path)
    described = metadata.get(_KEY)
    if (
        not isinstance(described, dict)
        or described.get("schema") != SCHEMA
        or not described.get("layers")
    ):
        raise InputError(f"{path} holds no quantized network of this version (schema {SCHEMA}).")
    module = _build(path, metadata) if module is None else module
    parts = dict(module.named_modules(remove_duplicate=False))
    hooks: dict[int, tuple[nn.Module, InputQuantizer]] = {}
    for name, quantizer in _quantizers(path, described).items():
        part = parts.get(name)
        if part is None:
            raise InputError(f"{path}: the network has no layer {name!r}.")
        if any(isinstance(hook, InputQuantizer) for hook in part._forward_pre_hooks.values()):
            raise InputError(f"layer {name!r} quantizes its inputs already: load into a fresh one.")
        if quantizer.bits:
            hooks[id(part)] = (part, quantizer)  # one hook for a layer that has two names
    load_checkpoint(path, module)
    for part, quantizer in hooks.values():
        part.register_forward_pre_hook(quantizer, with_kwargs=True)
    return module.eval()


def _build(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> nn.Module:
    name, build = metadata.get("network"), metadata.get("build")
    if not isinstance(name, str) or not isinstance(build, dict) or not build:
        raise InputError(f"{path} does not say how its network is built: give the float network.")
    try:
        return load_network(name, **build)
    except TypeError as error:
        raise InputError(f"{path} is damaged: its network cannot be built ({error}).") from error


def _describe(layer: QuantLayer) -> dict[str, Any]:
    slot = layer.slot
    found: dict[str, Any] = {"w_bits": slot.w_bits, "a_bits": slot.a_bits}
    if slot.a_bits:
        quantizer = slot.quantizer
        if type(quantizer) is LSQQuantizer:
            found["a_step"] = float(step_size(quantizer.step_of_inputs(slot.a_bits)))
        elif type(quantizer) is LinearQuantizer:
            found["a_clip"] = quantizer.activation_clip[slot.a_bits - 1]
        else:
            raise InputError(
                f"layer {slot.name!r}: a file says how the quantizers of this package treat "
                f"inputs, and not how {type(quantizer).__name__} does."
            )
        found["signed"] = quantizer.signed
    return found


def _quantizers(
    path: str | os.PathLike[str], described: Mapping[str, Any]
) -> dict[str, InputQuantizer]:
    """Read what `_describe` wrote, by layer; 0 bits leave the inputs as they are."""
    try:
        return {
            name: InputQuantizer(
                int(layer["a_bits"]),
                float(layer.get("a_clip", 1.0)),
                step=float(layer["a_step"]) if "a_step" in layer else None,
                signed=bool(layer.get("signed")),
            )
            for name, layer in described["layers"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: its layers cannot be read ({error!r}).") from error


def _check_untied(network: QuantizedNetwork) -> None:
    """Refuse weights that two modules hold: one file cannot say both what each makes of them."""
    owners: dict[int, set[int]] = {}
    names: dict[int, str] = {}
    for name, part in network.module.named_modules():
        for tensor in part.parameters(recurse=False):
            owners.setdefault(id(tensor), set()).add(id(part))
            names[id(tensor)] = name
    for part in network.module.modules():
        if isinstance(part, QuantLayer) and len(owners[id(part.weight)]) > 1:
            raise InputError(
                f"layer {names[id(part.weight)]!r} shares its weights with another layer, so they "
                "cannot be stored quantized."
            )
