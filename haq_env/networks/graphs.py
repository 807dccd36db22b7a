"""Running a network symbolically: which layer is called, in which order, with which shapes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from haq_env.networks.signs import not_negative_inputs

# Both front ends see the network as this attribute of a module with exactly one input, so that
# further arguments of its forward keep their defaults.
_NETWORK = "network"


@dataclass(frozen=True)
class Call:
    """One call of a quantizable layer.

    Attributes:
        path: the layer's path in the network.
        in_shape: shape of the input, for a batch of one.
        out_shape: shape of the output, for a batch of one.
        signed: whether the input can be negative.
    """

    path: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    signed: bool


class OneInput(nn.Module):
    """A network that is called with its first argument alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor) -> Any:
        """Call the network."""
        return self.network(sample)


def failing_module(error: BaseException, network: nn.Module) -> str:
    """Return the path of the innermost module whose forward raised an error, "" if none is known.

    Args:
        error: what was raised, with its traceback.
        network: the module whose paths are meant.
    """
    paths = {id(module): path for path, module in network.named_modules()}
    found = ""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            found = paths.get(id(owner), found)
        trace = trace.tb_next
    return found


def symbolic_calls(
    network: nn.Module, sample: Tensor, layers: Mapping[str, nn.Module]
) -> list[Call]:
    """List the layers' calls with `torch.fx`.

    Shapes come from fake tensors, which cost no arithmetic; where an operation knows none, from a
    run on the sample.

    Args:
        network: in evaluation mode.
        sample: a batch of one.
        layers: the quantizable layers by path.

    Returns:
        The calls in execution order.

    Raises:
        Exception: whatever the network's own code raises when it is traced or run.
    """
    root = OneInput(network)
    tracer = _Tracer(set(map(id, layers.values())))
    graph = tracer.trace(root)
    modules = dict(root.named_modules())
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            shapes = _shapes(root, graph, mode.from_tensor(sample))
    except Exception:  # not every operation knows shapes alone; real numbers cost a forward pass
        shapes = _shapes(root, graph, sample)
    positive = not_negative_inputs(graph, modules)
    calls = []
    for node in graph.nodes:
        if node.op == "call_module":
            path = node.target.removeprefix(_NETWORK).removeprefix(".")
            if path in layers:
                calls.append(Call(path, *shapes[node], signed=not positive[node]))
    return calls


def exported_calls(
    network: nn.Module, sample: Tensor, layers: Mapping[str, nn.Module]
) -> list[Call]:
    """List the layers' calls with `torch.export`; arguments as of `symbolic_calls`."""
    root = OneInput(network)
    # It prints graphs where it fails, which the error that the caller raises makes superfluous.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        program = torch.export.export(root, (sample,), strict=False)
    # Shared modules and tied weights appear under any of their names, so objects are compared.
    names = {id(layer): path for path, layer in layers.items()}
    modules = dict(root.named_modules(remove_duplicate=False))
    parameters = program.graph_signature.inputs_to_parameters
    positive = not_negative_inputs(program.graph, {})
    calls = []
    for node in program.graph.nodes:
        caller = modules.get(_caller(node))
        if id(caller) not in names or len(node.args) < 2:
            continue
        source, weight = node.args[0], node.args[1]
        if not (isinstance(source, fx.Node) and isinstance(weight, fx.Node)):
            continue
        name = parameters.get(weight.name)
        if name is not None and root.get_parameter(name) is getattr(caller, "weight", None):
            reader, before = node, _source(source)
            # a padding mode is an operation of its own here, and no part of the layer's input
            pads = source.op == "call_function" and "pad" in str(source.target)
            if pads and before is not None and modules.get(_caller(source)) is caller:
                reader, source = source, before
            shapes = tuple(source.meta["val"].shape), tuple(node.meta["val"].shape)
            calls.append(Call(names[id(caller)], *shapes, signed=not positive[reader]))
    return calls


class _Tracer(fx.Tracer):
    trace_asserts = True

    def __init__(self, layers: set[int]) -> None:
        super().__init__()
        self.layers = layers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if id(m) in self.layers:
            return True
        # torch's own modules are leaves, but some, like TransformerEncoderLayer, hide layers.
        leaf = super().is_leaf_module(m, module_qualified_name)
        return leaf and not any(id(part) in self.layers for part in m.modules())


Shapes = dict[fx.Node, tuple[tuple[int, ...], tuple[int, ...]]]


def _shapes(root: nn.Module, graph: fx.Graph, sample: Tensor) -> Shapes:
    shapes: Shapes = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            source = _source(n)
            value = self.env.get(source) if n.op == "call_module" and source else None
            result = super().run_node(n)
            if isinstance(value, Tensor) and isinstance(result, Tensor):
                shapes[n] = _ints(value), _ints(result)
            return result

    Recorder(root, graph=graph).run(sample)
    return shapes


def _ints(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape)


def _source(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source if isinstance(source, fx.Node) else None


def _caller(node: fx.Node) -> str:
    """Return the path of the module in whose forward an exported operation stands."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path, _ = list(stack.values())[-1]
    # The second call of a module is told by a suffix.
    return str(path).partition("@")[0]
