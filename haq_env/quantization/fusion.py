"""Do less between quantized layers, with the same answers to the last bit.

A quantizer of non-negative inputs clips them to 0..clip, and its gradient is zero outside: a ReLU
right before it changes nothing, nor does a ReLU6 if the clip is at most 6. So a ReLU whose result
goes to such layers alone hands its input on, which saves a pass over the feature map in each
direction. And where nothing but batch norm takes what a layer puts out, batch norm may write over
it, once no gradient is wanted: a feature map less to allocate and to bring into the cache.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx, nn

from haq_env.generators import kept_generators
from haq_env.networks.graphs import OneInput
from haq_env.networks.modes import kept_modes
from haq_env.quantization.attributes import untouched
from haq_env.quantization.layers import QuantConv2d, QuantLayer, Slot


class AbsorbedReLU(nn.ReLU):
    """A ReLU or ReLU6 that does nothing while all layers behind it quantize what it gives."""

    consumers: tuple[Slot, ...]
    ceiling: float

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, of any shape, or what the activation makes of it."""
        if all(slot.a_bits for slot in self.consumers):
            return input
        if self.ceiling == float("inf"):
            return super().forward(input)
        return nn.functional.relu6(input, self.inplace)

    def _get_name(self) -> str:
        # printed as what it computes: digests of a network do not depend on fusion
        return "ReLU" if self.ceiling == float("inf") else "ReLU6"


class InPlaceBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that writes over its input when it only applies its statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C, H, W]."""
        plain = self.training or torch.is_grad_enabled() or input.device.type != "cpu"
        if plain or self.running_mean is None or input.dtype != self.running_mean.dtype:
            return super().forward(input)
        unused = input.new_empty(0)
        # number by number the same arithmetic as F.batch_norm, whose result it only puts elsewhere
        return torch.ops.aten.native_batch_norm.out(  # type: ignore[no-any-return]
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            False,
            0.0,
            self.eps,
            out=input,
            save_mean=unused,
            save_invstd=unused,
        )[0]

    def _get_name(self) -> str:
        return "BatchNorm2d"


def fuse(module: nn.Module) -> None:
    """Turn ReLUs and batch norms into the classes above where that changes no answer, in place.

    Args:
        module: a network with quantized layers. Where `torch.fx` cannot follow it, it stays as
            it is, and is only slower.
    """
    found: list[_Found] = []
    for training in (True, False):  # a network may take other ways in training
        try:
            with kept_modes(module):
                module.train(training)
                found.append(_find(module))
        except Exception:  # whatever the network's own code raises on symbols
            return
    first, second = found
    for norm in first.norms & second.norms:
        norm.__class__ = InPlaceBatchNorm2d
    for relu, slots in first.relus.items():
        ceiling = ceiling_of(relu)
        if second.relus.get(relu) == slots and ceiling is not None:
            relu.__class__ = AbsorbedReLU
            absorbed = cast(AbsorbedReLU, relu)
            absorbed.consumers, absorbed.ceiling = slots, ceiling


def is_hooked(module: nn.Module) -> bool:
    """Tell whether a module's inputs or outputs are looked at, or changed, by hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def ceiling_of(module: nn.Module | None) -> float | None:
    """Return the bound of a ReLU, infinity for the plain one, None for anything else."""
    # exact types: a subclass may compute anything
    if type(module) is AbsorbedReLU:
        return module.ceiling
    if type(module) is nn.ReLU:
        return float("inf")
    return 6.0 if type(module) is nn.ReLU6 else None


class _Found:
    """What can be fused.

    Attributes:
        relus: ReLUs whose result goes to layers alone that clip it likewise, with these layers.
        norms: batch norms that alone take what one convolution puts out.
    """

    def __init__(self) -> None:
        self.relus: dict[nn.Module, tuple[Slot, ...]] = {}
        self.norms: set[nn.Module] = set()


class _Tracer(fx.Tracer):
    """Sees quantized and fused layers as one step, however deep they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (QuantLayer, AbsorbedReLU, InPlaceBatchNorm2d)):
            return True
        leaf = super().is_leaf_module(m, module_qualified_name)
        return leaf and not any(isinstance(part, QuantLayer) for part in m.modules())


def follow(network: nn.Module) -> tuple[fx.Graph, nn.Module]:
    """Trace a network with `torch.fx`; quantized layers are single steps.

    Returns:
        The graph, and the root that its module paths start from.

    Raises:
        Exception: whatever the network's own code raises on symbols.
    """
    root = OneInput(network)
    root.training = network.training
    # a forward may assign what it computes, and draw random numbers
    with untouched(network), kept_generators(), torch.random.fork_rng(devices=[]):
        return _Tracer().trace(root), root


def _find(network: nn.Module) -> _Found:
    graph, root = follow(network)
    modules = dict(root.named_modules())
    called = {node: modules[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node, module in called.items():
        calls.setdefault(module, []).append(node)
    found = _Found()
    for module, nodes in calls.items():
        takers = [called.get(user) for node in nodes for user in node.users]
        if any(is_hooked(each) for each in (module, *takers) if each is not None):
            continue  # hooks see, and may change, what fusion writes over or leaves out
        ceiling = ceiling_of(module)
        if ceiling is not None:
            slots = [taker.slot for taker in takers if isinstance(taker, QuantLayer)]
            repeats = [slot for slot in slots if slot.quantizer.clips_like_relu(ceiling)]
            # others may read what it has written in place, or write into what it hands on
            shared = any(len(read.users) > 1 for node in nodes for read in node.all_input_nodes)
            if takers and len(repeats) == len(takers) and not shared:
                found.relus[module] = tuple(repeats)
        if isinstance(module, QuantConv2d) and len(nodes) == len(takers) == 1:
            norm = takers[0]
            if type(norm) is nn.BatchNorm2d and len(calls[norm]) == 1:
                found.norms.add(norm)
    return found
