"""Convolution and linear layers whose bits are two integers that can change at any time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from haq_env.errors import InputError
from haq_env.policy import ALL_BITS
from haq_env.quantization.convolution import convolve, unsafe
from haq_env.quantization.scheme import LayerQuantizer


class WeightCache:
    """Quantized pretrained weights of a network, by layer and bits, within a memory limit.

    Args:
        limit: bytes; the entries that were not used for longest are dropped beyond it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._entries: OrderedDict[tuple[str, int], Tensor] = OrderedDict()

    def get(self, layer: str, bits: int) -> Tensor | None:
        """Return the weights of a layer at a width, or None."""
        entry = self._entries.get((layer, bits))
        if entry is not None:
            self._entries.move_to_end((layer, bits))
        return entry

    def put(self, layer: str, bits: int, weight: Tensor) -> None:
        """Keep the weights of a layer at a width, unless they alone exceed the limit."""
        size = weight.numel() * weight.element_size()
        if size > self.limit:
            return
        self._entries[layer, bits] = weight
        self.size += size
        while self.size > self.limit:
            _, dropped = self._entries.popitem(last=False)
            self.size -= dropped.numel() * dropped.element_size()

    def drop(self, layer: str) -> None:
        """Forget one layer."""
        for key in [key for key in self._entries if key[0] == layer]:
            dropped = self._entries.pop(key)
            self.size -= dropped.numel() * dropped.element_size()

    def __len__(self) -> int:
        return len(self._entries)

    def __getstate__(self) -> dict[str, Any]:
        # contents can be computed again: copies and pickles of a network go without them
        return {"limit": self.limit, "size": 0, "_entries": OrderedDict()}


@dataclass(eq=False)
class Slot:
    """What a quantized layer has besides its float parameters.

    A plain object, because assigning to a module goes through `nn.Module.__setattr__`, which is
    slow, and so that nothing of it enters the state dict.

    Attributes:
        name: the layer's path in the network.
        quantizer: quantizes this layer at any width.
        cache: the network's cache of quantized pretrained weights.
        w_bits: weight bits, 0 for float weights.
        a_bits: activation bits, 0 for float activations.
        pretrained_version: `version` while the weight tensor and what the quantizer learns are
            the pretrained ones; -1 when they are not.
    """

    name: str
    quantizer: LayerQuantizer
    cache: WeightCache
    w_bits: int = 0
    a_bits: int = 0
    pretrained_version: int = -1
    # version counters alone do not do: fused optimizers change weights without counting, so
    # whatever can be part of a training step counts here
    _generation: int = 0
    # the latest quantized weights that are not in the cache: (version, generation, bits), weights
    _latest: tuple[tuple[int, int, int], Tensor] | None = field(default=None, repr=False)

    def version(self, weight: Tensor) -> int:
        """Return a number that grows with every change in place of what decides quantized weights.

        Args:
            weight: the layer's.
        """
        # each counter only grows, so their sum tells of a change of any
        return weight._version + sum(each._version for each in self._learned())

    def learns(self) -> bool:
        """Tell whether the quantizer has parameters that training may change."""
        return any(each.requires_grad for each in self._learned())

    @property
    def widths(self) -> tuple[range, range]:
        """What the quantizer has for this layer's weights and inputs; empty for floats."""
        weight_bits: range = getattr(self.quantizer, "weight_bits", ALL_BITS)
        return weight_bits, self.quantizer.activation_bits

    def quantized(self, weight: Tensor) -> Tensor:
        """Return the quantized weights, from memory where no gradient is wanted."""
        bits = self.w_bits
        if torch.is_grad_enabled():
            return self.quantizer.weight(weight, bits)
        version = self.version(weight)
        if version == self.pretrained_version:
            found = self.cache.get(self.name, bits)
            if found is None:
                found = self.quantizer.weight(weight, bits)
                self.cache.put(self.name, bits, found)
            return found
        key = (version, self._generation, bits)
        if self._latest is None or self._latest[0] != key:
            self._latest = (key, self.quantizer.weight(weight, bits))
        return self._latest[1]

    def may_change(self) -> None:
        """Note that the weights may no longer be what they were."""
        self.pretrained_version = -1
        self._generation += 1

    def forget(self) -> None:
        """Drop every quantized weight of this layer."""
        self._latest = None
        self.cache.drop(self.name)

    def restored(self, weight: Tensor) -> None:
        """Note that the tensor holds the pretrained weights again."""
        self._latest = None
        self.note_pretrained(weight)
        self.quantizer.reset()

    def is_pretrained(self, weight: Tensor) -> bool:
        """Tell whether nothing has changed since it was the pretrained state."""
        return self.version(weight) == self.pretrained_version

    def note_pretrained(self, weight: Tensor, pretrained: bool = True) -> None:
        """Note whether this is the pretrained state; for tensors that count their versions anew."""
        self.pretrained_version = self.version(weight) if pretrained else -1

    def _learned(self) -> Iterable[Tensor]:
        quantizer = self.quantizer
        if isinstance(quantizer, nn.Module):
            return chain(quantizer.parameters(), quantizer.buffers())
        return ()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None}


class QuantLayer(nn.Module):
    """What the two kinds of quantized layer share."""

    weight: Tensor
    slot: Slot

    def operands(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and the weights as the layer's present bits leave them."""
        slot = self.slot
        if torch.is_grad_enabled() and (self.weight.requires_grad or slot.learns()):
            slot.may_change()  # an optimizer may follow
        if slot.a_bits:
            inputs = slot.quantizer.activation(inputs, slot.a_bits)
        return inputs, slot.quantized(self.weight) if slot.w_bits else self.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # .to(), .half() and the like replace the tensor, and its version counter with it
        pretrained = self.slot.is_pretrained(self.weight)
        self.slot.forget()
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.slot.note_pretrained(self.weight, pretrained)
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        # a copy's tensor counts its versions anew; whether it was pretrained is in the state
        pretrained = state.pop("_pretrained", False)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.slot.note_pretrained(self.weight, pretrained)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pretrained": self.slot.is_pretrained(self.weight)}

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) in _KINDS.values():
            return super().__reduce_ex__(protocol)
        made = cast(Any, type(self))  # at run time, so its name leads nowhere
        return _blank, (made.given, made.float_kind), self.__getstate__()

    def extra_repr(self) -> str:
        """Add the bits to what the float layer says of itself."""
        bits = f"w_bits={self.slot.w_bits or 'float'}, a_bits={self.slot.a_bits or 'float'}"
        return f"{super().extra_repr()}, {bits}"


class QuantConv2d(QuantLayer, nn.Conv2d):
    """A convolution whose weights and inputs are quantized in the forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, [N, C, H, W] to [N, K, H', W']."""
        inputs, weight = self.operands(input)
        if torch.is_grad_enabled() and (self.training or unsafe(self, inputs)):
            return convolve(self, inputs, weight)
        output: Tensor = self._conv_forward(inputs, weight, self.bias)
        return output


class QuantLinear(QuantLayer, nn.Linear):
    """A matrix product whose weights and inputs are quantized in the forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply, [..., in_features] to [..., out_features]."""
        inputs, weight = self.operands(input)
        return nn.functional.linear(inputs, weight, self.bias)


# what a subclass may have of its own without computing anything else
_HARMLESS = (
    *("__init__", "__module__", "__doc__", "__annotations__", "__dict__", "__weakref__"),
    *("__qualname__", "__firstlineno__", "__static_attributes__", "__parameters__"),
    *("__orig_bases__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
    *("__constants__", "__repr__", "_version", "extra_repr", "reset_parameters", "train", "eval"),
)


def _own_names(given: type[nn.Module], kind: type[nn.Module]) -> set[str]:
    """Return what a subclass defines beyond its construction."""
    between = given.__mro__[: given.__mro__.index(kind)]
    return {name for each in between for name in vars(each)}.difference(_HARMLESS)


_KINDS: dict[type[nn.Module], type[QuantLayer]] = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}
_MADE: dict[type[nn.Module], type[QuantLayer]] = {}


def _quantized_class(given: type[nn.Module], float_kind: type[nn.Module]) -> type[QuantLayer]:
    """Return the quantized class, with what a subclass of the float one is and adds to it."""
    kind = _KINDS[float_kind]
    if given is float_kind:
        return kind
    if given not in _MADE:
        made = type(kind.__name__, (kind, given), {"given": given, "float_kind": float_kind})
        _MADE[given] = made
    return _MADE[given]


def _blank(given: type[nn.Module], float_kind: type[nn.Module]) -> QuantLayer:
    """Make an object of such a class for its state to be put into (copies and pickles)."""
    kind = _quantized_class(given, float_kind)
    return kind.__new__(kind)


def make_quantized(module: nn.Module, slot: Slot) -> QuantLayer:
    """Turn a float layer into its quantized kind, in place.

    The object, its parameters and its hooks stay, so every reference to it stays valid and no
    initialisation draws random numbers.

    Raises:
        InputError: not a plain convolution or linear layer; a subclass may add to one, but not
            change what it computes.
    """
    # a change of class instead of a new module: see above
    for float_kind in _KINDS:
        if isinstance(module, float_kind) and "weight" not in module._parameters:
            raise InputError(
                f"the weight of layer {slot.name!r} is computed (pruning, weight_norm, a "
                "parametrization): make it a parameter first, as torch.nn.utils.prune.remove or "
                "parametrize.remove_parametrizations do."
            )
        if isinstance(module, float_kind):
            changed = _own_names(type(module), float_kind) & {*dir(float_kind)}
            if changed:
                raise InputError(
                    f"layer {slot.name!r} is {type(module).__name__}, which has its own "
                    f"{min(changed)}: only what computes as nn.{float_kind.__name__} does can be "
                    "quantized."
                )
            module.__class__ = _quantized_class(type(module), float_kind)
            layer = cast(QuantLayer, module)
            layer.slot = slot
            slot.restored(layer.weight)
            return layer
    raise InputError(
        f"layer {slot.name!r}: only nn.Conv2d and nn.Linear can be quantized, "
        f"not {type(module).__name__}."
    )
