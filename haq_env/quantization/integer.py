"""Run a quantized network on integer kernels: int8 codes, int32 sums.

The network is traced once with `torch.fx`. Every quantized layer, with the batch norm, the
residual sum and the ReLU that follow it, becomes one `Kernel`; where a single quantized layer takes
the result, codes pass from one to the other and no float feature map arises. Everything else
(pooling, residual streams, attention, other activations) runs as it is, in float.

The sums are exact, while floating point rounds them, and batch norm is one affine map. So an
activation that falls within rounding of the border between two codes may get the other one: the
two paths agree in almost all predictions, not by construction in all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from haq_env.quantization.attributes import plain_attributes
from haq_env.quantization.fusion import InPlaceBatchNorm2d, ceiling_of, follow, is_hooked
from haq_env.quantization.kernel_check import exact_weights
from haq_env.quantization.kernels import Grid, Kernel
from haq_env.quantization.layers import QuantLayer
from haq_env.quantization.network import QuantizedNetwork
from haq_env.quantization.products import Unsupported

__all__ = ["IntegerNetwork", "IntegerProgram", "Unsupported"]

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE = (operator.iadd, "add_")
_RELUS = (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
_RELU6S = (F.relu6,)
_NORMS = (nn.BatchNorm2d, InPlaceBatchNorm2d)
_PASS_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode


class IntegerNetwork:
    """A quantized network with its present bits and weights, on integer kernels.

    Bits, weights and batch-norm statistics are those of the moment of conversion. Parts that stay
    in float are the network's own modules, though: convert again after it was trained or restored.

    It is called with float images [N, C, H, W] and returns logits, float32 [N, classes].
    """

    def __init__(self, graph: fx.GraphModule, kernels: list[Kernel]) -> None:
        self._graph = graph
        self._kernels = kernels

    @classmethod
    def of(cls, network: QuantizedNetwork, program: IntegerProgram | None = None) -> IntegerNetwork:
        """Convert a network that is in evaluation mode.

        Args:
            network: with bits on every layer.
            program: what `IntegerProgram.of` made of this network; it saves tracing it again.

        Raises:
            Unsupported: something has no integer form; the reason is one line.
        """
        return (program or IntegerProgram.of(network)).convert()

    def __call__(self, images: Tensor) -> Tensor:
        """Map float images [N, C, H, W] to logits [N, classes]."""
        with torch.no_grad():
            logits: Tensor = self._graph(self._kernels, images)
        return logits

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over what can be trained: nothing."""
        return iter(())

    def train(self, mode: bool = True) -> IntegerNetwork:
        """Stay as it is: there is only evaluation."""
        return self

    def eval(self) -> IntegerNetwork:
        """Stay as it is: there is only evaluation."""
        return self


class IntegerProgram:
    """The structure of a network as integer kernels, for any bits and weights.

    Args:
        network: the network, which `convert` reads again every time.
        graph: calls kernels by their number, besides float operations.
        stages: what every kernel consists of.
    """

    def __init__(
        self, network: QuantizedNetwork, graph: fx.GraphModule, stages: list[_Stage]
    ) -> None:
        self._network = network
        self._graph = graph
        self._stages = stages
        self._computed = _own_state(network.module)

    @classmethod
    def of(cls, network: QuantizedNetwork) -> IntegerProgram:
        """Trace a network.

        Raises:
            Unsupported: the machine has no exact integer kernels, the network is not in float32
                on the CPU, or it cannot be traced.
        """
        exact_weights()
        for parameter in network.module.parameters():
            if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
                raise Unsupported("integer kernels need a float32 network on the CPU")
        try:
            graph, root = follow(network.module)
        except Exception as error:  # whatever the network's own code raises on proxies
            raise Unsupported(f"the network cannot be traced ({type(error).__name__})") from error
        for path, part in network.module.named_modules():
            absorbed = isinstance(part, (QuantLayer, _BatchNorm)) or type(part) in _PASS_MODULES
            if (absorbed or ceiling_of(part) is not None) and is_hooked(part):
                raise Unsupported(f"module {path!r} has hooks, which no kernel would call")
        stages = _fuse(graph, dict(root.named_modules()))
        if len(stages) != len(network.layers):
            raise Unsupported("a quantized layer is not called exactly once")
        return cls(network, fx.GraphModule(root, graph), stages)

    def convert(self) -> IntegerNetwork:
        """Read bits, weights and batch-norm statistics.

        Raises:
            Unsupported: a layer is in float, or its quantizer has no integer codes.
        """
        if self._network.training:
            raise Unsupported("the network is in training mode")
        now = _own_state(self._network.module)
        if now.keys() != self._computed.keys() or not all(
            _equal(now[name], kept) for name, kept in self._computed.items()
        ):
            # what a forward computes of them alone is a constant of the graph
            fresh = IntegerProgram.of(self._network)
            self._graph, self._stages, self._computed = fresh._graph, fresh._stages, now
        return IntegerNetwork(self._graph, [stage.kernel() for stage in self._stages])


def _own_state(module: nn.Module) -> dict[str, Any]:
    """Copy what modules that tracing looks into, those of the user's own classes, compute with."""
    found: dict[str, Any] = {}
    for path, (_, values) in plain_attributes(module, of_users=True).items():
        buffers = module.get_submodule(path).named_buffers(recurse=False)
        own = {**values, **{name: buffer.clone() for name, buffer in buffers}}
        found |= {f"{path}.{name}": value for name, value in own.items()}
    return found


def _equal(one: Any, other: Any) -> bool:
    """Tell whether state is the same; what cannot be compared has changed."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    try:
        return type(one) is type(other) and bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # arrays, and containers with tensors in them
        return False


@dataclass
class _Stage:
    """What becomes one kernel: a layer and what follows it."""

    layer: QuantLayer
    norm: _BatchNorm | None = None
    added: fx.Node | None = None
    ceiling: float | None = None
    consumer: QuantLayer | None = None

    def kernel(self) -> Kernel:
        output = None if self.consumer is None else Grid.of(self.consumer.slot)
        return Kernel(self.layer, self.norm, self.ceiling, output)


def _run(kernels: list[Kernel], number: int, inputs: Tensor, added: Tensor | None = None) -> Tensor:
    return kernels[number](inputs, added)


def _run_kept(kernels: list[Kernel], number: int, inputs: Tensor, added: Tensor) -> Tensor:
    return kernels[number](inputs, added.clone())  # a kernel may write over what it adds


def _fuse(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[_Stage]:
    """Replace every quantized layer and what follows it by the call of a kernel, in the graph."""
    with graph.inserting_before(next(iter(graph.nodes))):
        kernels = graph.placeholder("kernels")
    stages: list[_Stage] = []
    for node in list(graph.nodes):
        layer = _module(node, modules)
        if not isinstance(layer, QuantLayer):
            continue
        stage, chain = _follow(node, layer, modules)
        arguments: tuple[Any, ...] = (kernels, len(stages), _source(node))
        function: Callable[..., Tensor] = _run
        place = node
        if stage.added is not None:
            arguments, place = (*arguments, stage.added), chain[-1]
            function = _run if _dies(stage.added, chain, modules) else _run_kept
        with graph.inserting_before(place):
            call = graph.call_function(function, arguments)
        chain[-1].replace_all_uses_with(call)
        for done in reversed(chain):
            graph.erase_node(done)
        stages.append(stage)
    return stages


def _follow(
    node: fx.Node, layer: QuantLayer, modules: dict[str, nn.Module]
) -> tuple[_Stage, list[fx.Node]]:
    """Walk on from a layer while one node alone takes the result and can be part of a kernel."""
    stage, chain = _Stage(layer), [node]
    while len(chain[-1].users) == 1:
        user = next(iter(chain[-1].users))
        module = _module(user, modules)
        if isinstance(module, QuantLayer):
            # kernels that add a residual put out floats: something else may need them
            stage.consumer = module if stage.added is None else None
            break
        if not _absorb(user, module, stage, chain):
            break
        chain.append(user)
    return stage, chain


def _absorb(user: fx.Node, module: nn.Module | None, stage: _Stage, chain: list[fx.Node]) -> bool:
    """Take one more node into a stage, if it can be."""
    if type(module) in _PASS_MODULES:
        return True
    if stage.ceiling is not None:
        return False
    if (ceiling := _ceiling(user, module)) is not None:
        # behind a sum the kernels know ReLU only
        fits = stage.added is None or ceiling == float("inf")
        stage.ceiling = ceiling if fits else None
        return fits
    if not isinstance(stage.layer, nn.Conv2d) or stage.added is not None:
        return False
    if isinstance(module, nn.BatchNorm2d) and type(module) in _NORMS:
        fits = stage.norm is None and module.running_mean is not None
        stage.norm = module if fits else stage.norm
        return fits
    if _called(user) in _ADDS:
        if _called(user) in _IN_PLACE and user.args[0] is not chain[-1]:
            return False  # it writes into what others may read
        stage.added = _other_operand(user, chain)
    return stage.added is not None


def _ceiling(node: fx.Node, module: nn.Module | None) -> float | None:
    """Return the bound of a ReLU, infinity for the plain one, None for anything else."""
    if _called(node) in _RELUS:
        return float("inf")
    return 6.0 if _called(node) in _RELU6S else ceiling_of(module)


def _other_operand(add: fx.Node, chain: list[fx.Node]) -> fx.Node | None:
    """Return what is added to the result of a chain, if the layer can run as late as the sum."""
    if len(add.args) != 2 or add.kwargs or add.args[0] is add.args[1]:
        return None
    other = add.args[1] if add.args[0] is chain[-1] else add.args[0]
    between = chain[0].next
    while between is not add:
        # it could change the layer's input in place
        if between not in chain and _source(chain[0]) in between.all_input_nodes:
            return None
        between = between.next
    return other if isinstance(other, fx.Node) else None


def _source(node: fx.Node) -> Any:
    """Return what a layer is called with."""
    return node.args[0] if node.args else node.kwargs["input"]


def _dies(node: fx.Node, chain: list[fx.Node], modules: dict[str, nn.Module]) -> bool:
    """Tell whether a node is a kernel's own result that nothing needs after the chain."""
    return node.target in (_run, _run_kept) and all(
        user in chain
        or (
            user < chain[-1]  # and keeps no view of it
            and (user.target in (_run, _run_kept) or isinstance(_module(user, modules), QuantLayer))
        )
        for user in node.users
    )


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _called(node: fx.Node) -> Any:
    return node.target if node.op in ("call_function", "call_method") else None
