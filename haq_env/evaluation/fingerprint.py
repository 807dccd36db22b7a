"""A digest of everything that decides an evaluator's answers, so that a cache never mixes them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from haq_env.policy import MAX_BITS, MIN_BITS, Bits
from haq_env.quantization import QUANTIZERS

if TYPE_CHECKING:
    from haq_env.evaluation.finetune import Images
    from haq_env.quantization.network import QuantizedNetwork

# Of the answers: raise it with every change of calibration, quantizers, finetuning or measuring
# that moves any of them, and those that caches hold are not found any more.
ANSWERS = 1
TRAINING_STEP = 2  # version of the step of a finetuning, likewise: of answers with finetuning

_PROBE = 8  # images

Part = tuple[str, bytes | memoryview]


def fingerprint(
    network: QuantizedNetwork, images: Mapping[str, Images], settings: tuple[object, ...]
) -> str:
    """Digest what the answers of an evaluator follow from.

    The network and the images are read as they are in memory. Besides them and the settings, it
    is what decides the last digits of sums, by which an image can change sides: torch, numpy, the
    kind of device, the vector units and the number of threads.

    Args:
        network: with its pretrained weights; its bits and modes are left changed.
        images: the splits ``"train"`` and ``"val"``.
        settings: recipe, seed and the like; what they print is what counts.

    Returns:
        64 hexadecimal digits.
    """
    machine = (
        torch.__version__,
        np.__version__,
        images["train"].labels.device.type,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
    )
    about = (ANSWERS, network.quantizer, network.layers.layers, *settings, *machine)
    return digest([("about", repr(about).encode()), *_network(network, images), *_data(images)])


def digest(parts: Iterable[Part]) -> str:
    """Return the SHA-256 of named contents, 64 hexadecimal digits; their order counts."""
    sha = hashlib.sha256()
    for name, content in parts:
        for part in (name.encode(), content):
            sha.update(len(part).to_bytes(8, "little"))  # no two lists run into the same bytes
            sha.update(part)
    return sha.hexdigest()


def _network(network: QuantizedNetwork, images: Mapping[str, Images]) -> Iterator[Part]:
    network.set_policy(None)
    network.restore()
    network.eval()
    # what prints as "<function f at 0x7f...>" is at another place in every process
    yield "structure", re.sub(r" at 0x[0-9a-f]+", "", repr(network.module)).encode()
    for name, parameter in network.module.named_parameters():
        yield raw(f"{name}, trained: {parameter.requires_grad}", parameter)
    for name, buffer in network.module.named_buffers():
        yield raw(name, buffer)
    for name, parameter in network.learned.named_parameters():
        yield raw(f"quantizer {name}, trained: {parameter.requires_grad}", parameter)
    # A forward is code and cannot be read: what it answers to a few images stands for it, and
    # with 4 bits for the quantizers as well. Quantizers of this package are one code for all
    # widths, and `ANSWERS` counts its versions; another's may treat every width in its own way.
    probe = images["train"].batch(slice(0, _PROBE))
    for bits in (None, *_widths(network)):
        network.set_policy(bits)
        with torch.no_grad():
            yield raw("answers", network(probe))


def _widths(network: QuantizedNetwork) -> list[Bits]:
    made = QUANTIZERS[network.quantizer]
    # a function may build on this package's classes and change what they do at one width
    if isinstance(made, type) and made.__module__.startswith("haq_env."):
        return [network.probe(4)]
    return [network.probe(width) for width in range(MIN_BITS, MAX_BITS + 1)]


def _data(images: Mapping[str, Images]) -> Iterator[Part]:
    for part in ("train", "val"):  # as the network sees them: normalised
        for batch, labels in images[part].batches(128):
            yield raw(part, batch)
            yield raw(part, labels)


def raw(name: str, tensor: Tensor) -> Part:
    """Return a tensor's content under its name, type and shape, for `digest`."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{name}: {tensor.dtype} {list(tensor.shape)}", flat.view(torch.uint8).numpy().data
