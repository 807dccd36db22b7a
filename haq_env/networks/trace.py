"""From a torch module to its `LayerTable`."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from haq_env.errors import InputError, typed_line
from haq_env.generators import kept_generators
from haq_env.layers import Layer, LayerTable, kind_of
from haq_env.networks.attention import fastpath_off
from haq_env.networks.graphs import Call, exported_calls, failing_module, symbolic_calls
from haq_env.networks.modes import evaluation_mode
from haq_env.networks.products import Products

_OWN_TABLE = "or pass a LayerTable of your own"


def quantizable(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers whose bits can be chosen, by path, in the order of registration.

    These are the `nn.Conv2d` and `nn.Linear` modules and their subclasses, apart from those inside
    `nn.MultiheadAttention`, which uses their weights without calling them.
    """
    attention = [
        path for path, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)
    ]
    return {
        path: part
        for path, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
        and not any(path.startswith(f"{owner}." if owner else "") for owner in attention)
    }


def trace(
    module: nn.Module, input_shape: Sequence[int] = (3, 224, 224), *, name: str | None = None
) -> LayerTable:
    """Find the quantizable layers of a network, in execution order, with their shapes.

    The network is traced with `torch.fx`, or with `torch.export` where its control flow needs
    concrete shapes. A copy is run on fake tensors in evaluation mode, without its forward hooks;
    the network and the global random generator stay as they are.

    What is called as an `nn.Conv2d` or `nn.Linear` module is quantizable. Everything else stays in
    floating point and its parameters count as `float_parameters`: biases, normalisation,
    transposed, 1-d and 3-d convolutions, `nn.MultiheadAttention`, parameters that the forward uses
    through functions such as `F.linear`, and layers that are never called in evaluation mode.

    A linear layer's positions are the vectors of one sample that it is applied to. If samples are
    folded into the batch (video frames, windows), all parts of a sample count.

    `signed_input` is False only where it can be proved: the input comes from a ReLU, sigmoid,
    softmax or the like through pooling, reshaping, concatenation, sums, products or means. The
    network's input is signed.

    Args:
        module: the network; it is called with one tensor.
        input_shape: shape of one sample, without the batch: channels, height and width in pixels.
        name: what the table calls the network; the class name if not given.

    Returns:
        The layer table.

    Raises:
        InputError: there is nothing to quantize, the network does not accept such an input, it
            cannot be traced, a layer's weights are used twice, or a layer is called that tracing
            does not see.
    """
    shape = _shape(input_shape)
    layers = quantizable(module)
    if not layers:
        raise InputError(
            f"network {name or type(module).__name__!r} has nothing to quantize: no nn.Conv2d and "
            "no nn.Linear module."
        )
    _check_materialised(module)
    # Without gradients torch's attention modules take a fused path that hides their layers.
    with kept_generators(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        products = Products()
        calls = _calls(module, _sample(module, shape), products)
    if not calls:
        raise InputError(
            f"network {name or type(module).__name__!r} has nothing to quantize: its forward calls "
            "no nn.Conv2d and no nn.Linear module."
        )
    _check_shared(calls, layers, products.read)
    table = tuple(_layer(call, layers[call.path]) for call in calls)
    total = sum(parameter.numel() for parameter in module.parameters())
    return LayerTable(
        network=name or type(module).__name__,
        layers=table,
        input_shape=shape,
        float_parameters=total - sum(layers[call.path].weight.numel() for call in calls),
        uncounted=(*_uncounted(module, {call.path for call in calls}), *products.named()),
    )


def _uncounted(module: nn.Module, counted: set[str]) -> tuple[str, ...]:
    """Return modules with weights, which biases and scales are not, outside of the table.

    Those with most of them come first.
    """
    found = {}
    for path, part in module.named_modules():
        own = [
            each for each in part.parameters(recurse=False) if sum(n > 1 for n in each.shape) > 1
        ]
        if own and path not in counted:
            name = f"{path or 'the network itself'} ({type(part).__name__})"
            found[name] = sum(each.numel() for each in own)
    return tuple(sorted(found, key=lambda name: -found[name]))


def _shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in input_shape)
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(
            f"input_shape must be positive integers such as (3, 224, 224), not {input_shape!r}."
        )
    return shape


def _check_materialised(module: nn.Module) -> None:
    for path, part in module.named_parameters():
        if isinstance(part, nn.parameter.UninitializedParameter):
            raise InputError(
                f"{path} has no shape yet (a lazy module): call the network once on a batch first."
            )


def _sample(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
    return torch.zeros((1, *shape), dtype=first.dtype, device=first.device)


def _calls(module: nn.Module, sample: Tensor, products: Products) -> list[Call]:
    # What keeps something of its input must not keep symbols or fake tensors: copies are run.
    network = _apart(module)
    called = _called(network, sample, products)
    calls: list[Call] = []
    network = _apart(module)
    with evaluation_mode(network), suppress(Exception):
        calls = symbolic_calls(network, sample, quantizable(network))
        if _same(calls, called):
            return calls
    # Either fx cannot follow, or it took another way than an image does.
    network = _apart(module)
    try:
        with evaluation_mode(network):
            calls = exported_calls(network, sample, quantizable(network))
    except Exception as error:
        path = failing_module(error, network)
        where = f"the control flow of {path!r}" if path else "its control flow"
        raise InputError(
            f"the network cannot be traced{f' in {path!r}' if path else ''}: {_sentence(error)} "
            f"Make {where} independent of the data, {_OWN_TABLE}."
        ) from error
    if not _same(calls, called):
        hidden = sorted(called ^ {call.path for call in calls})
        raise InputError(
            f"layer {hidden[0]!r} is called, and tracing does not see it: it stands in a block of "
            "torch.no_grad or autocast, its weight is computed (weight_norm, a parametrization), "
            f"or what is called depends on the data. Take that away, {_OWN_TABLE}."
        )
    return calls


def _same(calls: list[Call], called: set[str]) -> bool:
    return {call.path for call in calls} == called


def _apart(module: nn.Module) -> nn.Module:
    """Return a copy without forward hooks; the network itself where it cannot be copied."""
    try:
        network = copy.deepcopy(module)
    except Exception:  # its costs can be had; what quantizes it will say why it cannot be
        return module
    for part in network.modules():
        part._forward_hooks.clear()  # of a copy they would still store in what they were made for
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging the traceback of an operation that failed on shapes alone."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _called(network: nn.Module, sample: Tensor, products: Products) -> set[str]:
    """Run a network once; return the paths of the quantizable layers that are called.

    Products of activations are counted.

    Raises:
        InputError: it does not accept the sample.
    """
    with products.watching(quantizable(network)), fastpath_off(), evaluation_mode(network):
        try:
            with _quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
                image = mode.from_tensor(sample)
                with products:
                    network(image)
        except Exception:  # not every operation knows shapes alone
            products.called.clear()
            _check_runs(network, sample)
    return products.called


def _check_runs(module: nn.Module, sample: Tensor) -> None:
    try:
        module(sample)
    except Exception as error:
        path = failing_module(error, module)
        where = f"module {path!r}" if path else f"its forward ({type(module).__name__})"
        raise InputError(
            f"the network does not accept an input of shape {list(sample.shape[1:])}: {where} "
            f"failed: {_sentence(error)}"
        ) from error


def _sentence(error: BaseException) -> str:
    line = typed_line(error)
    return line if line.endswith(".") else f"{line}."


def _check_shared(
    calls: list[Call], layers: dict[str, nn.Conv2d | nn.Linear], read: set[str]
) -> None:
    path, times = Counter(call.path for call in calls).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"layer {path!r} is called {times} times in one forward, so its bits would count "
            f"{times} times: give each call a layer of its own, {_OWN_TABLE}."
        )
    for one, other in itertools.combinations(calls, 2):
        if layers[one.path].weight is layers[other.path].weight:
            raise InputError(
                f"layers {one.path!r} and {other.path!r} share one weight tensor, which can have "
                f"one number of bits only: untie them, {_OWN_TABLE}."
            )
    if both := [call.path for call in calls if call.path in read]:
        raise InputError(
            f"something besides layer {both[0]!r} computes with its weight, which would be in "
            f"float there and in no cost: give it a weight of its own, {_OWN_TABLE}."
        )


def _layer(call: Call, module: nn.Conv2d | nn.Linear) -> Layer:
    if isinstance(module, nn.Linear):
        size = (math.prod(call.in_shape[:-1]), 1)
        return Layer(
            name=call.path,
            kind="linear",
            in_channels=module.in_features,
            out_channels=module.out_features,
            in_size=size,
            out_size=size,
            signed_input=call.signed,
        )
    return Layer(
        name=call.path,
        kind=kind_of(module.in_channels, module.groups),
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=(module.kernel_size[0], module.kernel_size[1]),
        stride=(module.stride[0], module.stride[1]),
        groups=module.groups,
        in_size=_map(call.in_shape),
        out_size=_map(call.out_shape),
        signed_input=call.signed,
    )


def _map(shape: tuple[int, ...]) -> tuple[int, int]:
    # Several maps of one sample, such as the frames of a video, are stacked.
    return math.prod(shape[:-1]) // shape[-3], shape[-1]
