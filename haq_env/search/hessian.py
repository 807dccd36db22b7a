"""Second-order measures of a loss: Hessian traces, top eigenvalues, Fisher information.

All of them work matrix-free on any scalar loss of torch parameters. Networks must be in
evaluation mode: batch norm then keeps samples apart, and the loss is a function of the
parameters alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from haq_env.cost import Grid
from haq_env.policy import WEIGHT

if TYPE_CHECKING:
    from haq_env.search.sensitivity import Context

POWER_IMAGES = 128  # power iteration holds the graph of all its images at once
PROBES = 50  # Hutchinson probes; Dong et al. (HAWQ-V2) find that so many suffice
ITERATIONS = 20  # of power iteration, at most
TOLERANCE = 1e-2  # relative change of the eigenvalue at which power iteration stops

Loss = Callable[[], Tensor]
Blocks = Callable[[], tuple[Tensor, list[Tensor]]]  # a loss, and what it is derived by
Numbers = NDArray[np.float64]


def hutchinson_traces(
    losses: Iterable[Blocks], generator: torch.Generator, probes: int = PROBES
) -> Numbers:
    """Estimate the trace of each diagonal block of a Hessian.

    Tr(H) is the mean of v' H v over vectors v of random signs (Hutchinson, 1989). One probe
    serves all blocks: the products between blocks have mean zero.

    Args:
        losses: one function for each equal share of the data, which returns the loss and the P
            tensors that it is derived by, parameters or intermediate results; the mean of the
            Hessians counts. Each share gets probes of its own, so that only one graph is held at
            a time.
        generator: of the probes, on the CPU.
        probes: how many, for each share.

    Returns:
        float64 [P]; can be negative away from a minimum.
    """
    rows = []
    for loss_and_blocks in losses:
        loss, blocks = loss_and_blocks()
        gradients = _gradients(loss, blocks)
        total = np.zeros(len(blocks))
        for _ in range(probes):
            signs = [_signs(block, generator) for block in blocks]
            products = _gradients_of_product(gradients, signs, blocks)
            total += [_dot(v, hv) for v, hv in zip(signs, products, strict=True)]
        rows.append(total / probes)
    return np.asarray(np.mean(rows, axis=0))


def top_eigenvalues(
    loss: Loss,
    parameters: Sequence[Tensor],
    generator: torch.Generator,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Numbers:
    """Find the eigenvalue of largest magnitude of each parameter's block of the Hessian.

    Power iteration: v becomes Hv / |Hv|, and v'Hv the eigenvalue (Dong et al., "HAWQ", ICCV
    2019). It stops when the eigenvalue changes by less than the tolerance.

    Args:
        loss: of all the data.
        parameters: P tensors that require gradients.
        generator: of the first vectors, on the CPU.
        iterations: the most that are made for one block.
        tolerance: relative.

    Returns:
        float64 [P].
    """
    gradients = _gradients(loss(), parameters)
    result = np.zeros(len(parameters))
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        vector = _signs(parameter, generator)
        vector = vector / vector.norm()
        for _ in range(iterations):
            (product,) = _gradients_of_product([gradient], [vector], [parameter])
            before, result[index] = result[index], _dot(vector, product)
            norm = float(product.norm())
            if norm == 0 or abs(result[index] - before) <= tolerance * abs(result[index]):
                break
            vector = product / norm
    return result


def fisher_traces(
    module: nn.Module,
    layers: Sequence[nn.Module],
    weights: Sequence[Tensor],
    samples: Iterable[Tensor],
    loss: Callable[[Tensor, int], Tensor],
) -> tuple[Numbers, Numbers]:
    """Trace of the empirical Fisher information of each layer's weights and of its inputs.

    The mean over samples of the squared norm of the gradient of that sample's loss: Zandonati
    et al., "FIT: A Metric for Model Sensitivity", ICLR 2023. An input that other layers share
    counts with the gradient that comes through this layer only, since only this layer sees it
    quantized.

    Args:
        module: the network, in evaluation mode.
        layers: L modules inside it.
        weights: L tensors that require gradients.
        samples: batches of one.
        loss: (logits, number of the sample) to a scalar.

    Returns:
        Two float64 arrays [L].
    """
    totals = np.zeros((2, len(layers)))
    count = 0
    with _own_inputs(layers) as seen:
        for number, sample in enumerate(samples):
            value = loss(module(sample), number)
            flat = [one for inputs in seen for one in inputs]
            gradients = _gradients(value, [*weights, *flat], keep_graph=False)
            squares = [_dot(g, g) for g in gradients]
            totals[0] += squares[: len(weights)]
            rest = iter(squares[len(weights) :])
            totals[1] += [sum(next(rest) for _ in inputs) for inputs in seen]
            count += 1
            for inputs in seen:
                inputs.clear()
    weight, activation = totals / max(1, count)
    return weight, activation


# -- tables: information or curvature, times the error found at calibration -------------------


def fit(context: Context) -> Grid:
    """Fisher trace times mean squared error, of weights and of activations (FIT)."""

    def loss(logits: Tensor, number: int) -> Tensor:
        return cross_entropy(logits, context.labels[number : number + 1])

    traces = fisher_traces(
        context.network,
        context.layers,
        [layer.weight.requires_grad_() for layer in context.layers],
        torch.split(context.images, 1),
        loss,
    )
    return _times_errors(context, *traces)


def hawq_v2(context: Context) -> Grid:
    """Hessian trace times mean squared error, of weights and of activations.

    Dong et al., "HAWQ-V2", NeurIPS 2020, which has it as mean trace times squared norm. The
    trace of activations is the mean over images of the Hessian by that image's activations.
    """
    weights = [layer.weight.requires_grad_() for layer in context.layers]
    calls: list[int] = []  # of each layer in one pass

    def shares() -> Iterator[Blocks]:
        for images, labels in context.batches():

            def blocks(
                images: Tensor = images, labels: Tensor = labels
            ) -> tuple[Tensor, list[Tensor]]:
                with _own_inputs(context.layers) as seen:
                    loss = cross_entropy(context.network(images), labels)
                calls[:] = [len(inputs) for inputs in seen]
                return loss, [*weights, *(one for inputs in seen for one in inputs)]

            yield blocks

    traces = hutchinson_traces(shares(), context.generator)
    owner = np.repeat(np.arange(len(calls)), calls)
    activations = np.zeros(len(calls))
    np.add.at(activations, owner, traces[len(weights) :])
    return _times_errors(context, traces[: len(weights)], activations)


def hawq(context: Context) -> Grid:
    """Top Hessian eigenvalue times squared error of the weights; activations from FIT.

    Dong et al., "HAWQ", ICCV 2019. The eigenvalue bounds the loss where a trace averages it,
    by orders of magnitude for a layer of many weights. One factor for all layers brings the
    weights' total to that of FIT, so that the two sides can be added; the order of the layers
    and widths is HAWQ's.
    """
    weights = [layer.weight.requires_grad_() for layer in context.layers]
    images, labels = context.images[:POWER_IMAGES], context.labels[:POWER_IMAGES]
    values = top_eigenvalues(
        lambda: cross_entropy(context.network(images), labels), weights, context.generator
    )
    count = np.array([weight.numel() for weight in weights])
    errors = context.network.errors.weights
    usable = np.isfinite(errors)
    omega = np.maximum(values * count, 0.0)[:, None] * np.where(usable, errors, 0.0)
    table = fit(context)
    counted = context.allowed[:, WEIGHT] & usable
    total = float(omega[counted].sum())
    factor = float(table[:, WEIGHT][counted].sum()) / total if total else 1.0
    table[:, WEIGHT] = np.where(usable, omega * factor, np.inf)
    return table


# -- how ----------------------------------------------------------------------------------------


def _times_errors(context: Context, weights: Numbers, activations: Numbers) -> Grid:
    """Multiply traces [L] by the mean squared errors of calibration, to [L, 2, 8]."""
    errors = np.stack(context.network.errors, axis=1)
    usable = np.isfinite(errors)
    traces = np.stack([weights, activations], axis=1)[:, :, None]
    # a width that a quantizer does not have is infinitely bad, whatever the trace is
    return np.asarray(np.where(usable, traces * np.where(usable, errors, 0.0), np.inf))


@contextmanager
def _own_inputs(layers: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Record the inputs of layers, a list for each, as tensors to be differentiated by."""
    seen: list[list[Tensor]] = [[] for _ in layers]
    with ExitStack() as stack:
        for layer, inputs in zip(layers, seen, strict=True):
            hook = layer.register_forward_pre_hook(_branch(inputs), with_kwargs=True)
            stack.callback(hook.remove)
        yield seen


def _branch(inputs: list[Tensor]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """Give a layer an input of its own, to be differentiated by and safe from in-place changes."""

    def hook(
        _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        own = (arguments[0] if arguments else named["input"]).clone()
        if not own.requires_grad:
            own.requires_grad_()
        inputs.append(own)
        return ((own, *arguments[1:]), named) if arguments else ((), {**named, "input": own})

    return hook


def _gradients(
    loss: Tensor, parameters: Sequence[Tensor], *, keep_graph: bool = True
) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, create_graph=keep_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def _gradients_of_product(
    gradients: Sequence[Tensor], vectors: Sequence[Tensor], by: Sequence[Tensor]
) -> list[Tensor]:
    """Multiply by the Hessian; a gradient that depends on nothing has none."""
    linked = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
    if not linked:
        return [torch.zeros_like(p) for p in by]
    outputs, against = zip(*linked, strict=True)
    found = torch.autograd.grad(outputs, by, against, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, by, strict=True)]


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
    return signs.to(like)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() * b.detach().double()).sum())
