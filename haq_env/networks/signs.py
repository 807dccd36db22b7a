"""Which tensors of a traced network can be negative.

A tensor counts as not negative only if that follows from the operations that made it. Unknown
operations make signed tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import fx, nn


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Results that are never negative, whatever comes in; sizes are among them.
_MAKE = _words(
    "relu relu6 sigmoid hardsigmoid softmax softmin abs absolute square exp exp2 softplus sqrt "
    "std var norm size sym_size sym_numel numel len dim eq ne lt le gt ge argmax argmin"
)
# Results that are not negative if the first argument is not: its numbers are moved, picked,
# averaged, or weighted by factors that are not negative.
_KEEP = _words(
    "view reshape flatten unflatten ravel permute transpose swapaxes movedim contiguous squeeze "
    "unsqueeze expand repeat tile roll flip clone detach alias to to_copy type float half bfloat16 "
    "double view_as expand_as reshape_as unfold pixel_shuffle pixel_unshuffle channel_shuffle "
    "getitem select slice narrow index index_select gather chunk split split_with_sizes unbind "
    "mean sum prod cumsum amax amin max round floor ceil "
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d upsample_nearest2d upsample_bilinear2d "
    "dropout dropout1d dropout2d dropout3d feature_dropout stochastic_depth drop_path "
    "tanh leaky_relu elu silu gelu hardswish mish"
)
# Results that are not negative if no operand is.
_COMBINE = _words("add iadd mul imul div truediv itruediv multiply divide")
_JOIN = _words("cat concat concatenate stack hstack vstack")

_MAKE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d, nn.Softplus),
)
_KEEP_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity),
    *(nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unfold),
    *(nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    *(nn.Tanh, nn.Hardswish, nn.SiLU, nn.GELU, nn.Mish, nn.LeakyReLU, nn.ELU),
)
# Packages whose functions do what their names say.
_HOMES = ("torch", "torchvision", "_operator", "operator", "builtins")
# relu_ and the like, but not __add__.
_IN_PLACE = re.compile(r"[a-z].*[^_]_$")
# Resampling that does not overshoot; bicubic does.
_MODES = ("nearest", "nearest-exact", "bilinear", "area", "linear", "trilinear")


def not_negative_inputs(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[fx.Node, bool]:
    """Tell of every node whether its first argument is known to be at least zero when it runs.

    What is written into that tensor later does not count.

    Args:
        graph: of `torch.fx` or of `torch.export` (aten operations).
        modules: the modules that the graph calls, by target; empty for `torch.export`.

    Returns:
        Node to whether all numbers in its first argument (in all of them, for a tuple) are >= 0 in
        evaluation mode. The network's inputs count as signed.
    """
    known: dict[fx.Node, bool] = {}
    inputs: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        source = _argument(node, 0, "input")
        inputs[node] = isinstance(source, fx.Node) and known[source]
        if node.op == "call_module":
            module = modules[node.target]
            known[node] = _of_module(module, node, known)
            if getattr(module, "inplace", False):
                _write_back(node, known)
        elif node.op in ("call_function", "call_method"):
            name = _name(node)
            known[node] = _of_call(name, node, known)
            if name == "setitem":
                _write_back(node, known, _argument(node, 2, "value"))
            elif _in_place(name, node):
                _write_back(node, known)
        else:
            known[node] = False
    return inputs


def _of_module(module: nn.Module, node: fx.Node, known: Mapping[fx.Node, bool]) -> bool:
    # Exact types: a subclass may compute anything.
    kind = type(module)
    if kind in _MAKE_MODULES:
        return True
    if isinstance(module, nn.Hardtanh):
        return kind is nn.Hardtanh and module.min_val >= 0
    keeps = kind in _KEEP_MODULES or (isinstance(module, nn.Upsample) and module.mode in _MODES)
    return keeps and _is(_argument(node, 0, "input"), known)


def _of_call(name: str, node: fx.Node, known: Mapping[fx.Node, bool]) -> bool:
    first = _argument(node, 0, "input")
    result = False
    if name in _MAKE:
        result = True
    elif name in _KEEP:
        result = _is(first, known)
    elif name in _COMBINE:
        result = all(_is(operand, known) for operand in (*node.args, *node.kwargs.values()))
    elif name in _JOIN:
        result = _is(_argument(node, 0, "tensors"), known)
    elif name in ("clamp", "clip", "clamp_min", "hardtanh"):
        result = _clamped(name, node, known)
    elif name in ("pad", "constant_pad_nd"):
        position, keyword = (3, "value") if name == "pad" else (2, "value")
        filling = _argument(node, position, keyword)
        result = _is(first, known) and (filling is None or _is(filling, known))
    elif name == "interpolate":
        mode = _argument(node, 3, "mode")
        result = _is(first, known) and (mode is None or mode in _MODES)
    elif name == "maximum":
        result = _is(first, known) or _is(_argument(node, 1, "other"), known)
    elif name in ("minimum", "where"):
        # as a method, `where` stands between its two operands: x.where(condition, y)
        middle = name == "where" and node.op == "call_method"
        operands = (node.args[0], *node.args[2:]) if middle else node.args[-2:]
        result = len(operands) == 2 and all(_is(operand, known) for operand in operands)
    elif name == "getattr":
        attribute = _argument(node, 1, "name")
        result = attribute in ("shape", "ndim") or (attribute in ("T", "mT") and _is(first, known))
    return result


def _clamped(name: str, node: fx.Node, known: Mapping[fx.Node, bool]) -> bool:
    keyword = "min_val" if name == "hardtanh" else "min"
    lower = _argument(node, 1, keyword)
    if lower is not None and _is(lower, known):
        return True
    # Without such a bound from below, the bound from above must not be negative either.
    upper = None if name in ("clamp_min", "hardtanh") else _argument(node, 2, "max")
    kept = name != "hardtanh" and _is(_argument(node, 0, "input"), known)
    return kept and (upper is None or _is(upper, known))


def _in_place(name: str, node: fx.Node) -> bool:
    if name in ("relu", "relu6") and len(node.args) > 1:
        return bool(node.args[1])
    named = name in ("iadd", "imul", "isub", "itruediv") or _IN_PLACE.match(_raw_name(node))
    return bool(named or node.kwargs.get("inplace"))


def _write_back(node: fx.Node, known: dict[fx.Node, bool], part: Any = None) -> None:
    """Carry the sign of what was written in place to the tensor that it was written into.

    Args:
        node: whose first argument was written into.
        known: what is known so far, changed here.
        part: what was written if it replaces only a part of the tensor.
    """
    target = _argument(node, 0, "input")
    if not isinstance(target, fx.Node):
        return
    result = known[node] if part is None else known[target] and _is(part, known)
    if known[target] and not result:
        # Any earlier tensor may be a view of this one.
        known.update(dict.fromkeys(known, False))
    known[target] = result


def _name(node: fx.Node) -> str:
    # A function of the user's own may have any name.
    home = getattr(node.target, "__module__", None) if callable(node.target) else None
    known = home is None or home.partition(".")[0] in _HOMES
    return _raw_name(node).strip("_") if known else ""


def _raw_name(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, str):
        return target
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return str(schema.name).rpartition("::")[2]
    return str(getattr(target, "__name__", target))


def _argument(node: fx.Node, position: int, keyword: str) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(keyword, node.kwargs.get("self") if position == 0 else None)


def _is(value: Any, known: Mapping[fx.Node, bool]) -> bool:
    if isinstance(value, fx.Node):
        return known[value]
    if isinstance(value, bool | int | float):
        return value >= 0
    if isinstance(value, list | tuple):
        return all(_is(item, known) for item in value)
    return value is None
