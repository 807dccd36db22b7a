"""What enters the layers of a network: samples that quantizers are calibrated on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from haq_env.errors import InputError
from haq_env.quantization.calibration import sampling_stride


def record_inputs(
    network: nn.Module, layers: Mapping[str, nn.Module], images: Tensor
) -> list[Tensor]:
    """Run images and return a sample of what enters each of some layers, flat, float.

    Args:
        network: what is run, once.
        layers: the layers inside it, by name.
        images: [N, ...], as the network takes them.

    Raises:
        InputError: a layer is not reached.
    """
    seen: list[list[Tensor]] = [[] for _ in layers]
    with _input_hooks(list(layers.values()), seen), torch.no_grad():
        network(images)
    for name, samples in zip(layers, seen, strict=True):
        if not samples:
            raise InputError(f"layer {name!r} is not reached by a forward pass.")
    return [samples[0] if len(samples) == 1 else torch.cat(samples) for samples in seen]


@contextmanager
def _input_hooks(parts: list[nn.Module], seen: list[list[Tensor]]) -> Iterator[None]:
    handles = []
    for part, samples in zip(parts, seen, strict=True):

        def record(
            _: nn.Module,
            arguments: tuple[Tensor, ...],
            named: dict[str, Tensor],
            samples: list[Tensor] = samples,
        ) -> None:
            # a copy: the layer's input may be overwritten later by an in-place activation
            flat = (arguments[0] if arguments else named["input"]).detach().flatten()
            samples.append(flat[:: sampling_stride(flat.numel())].clone())

        handles.append(part.register_forward_pre_hook(record, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
