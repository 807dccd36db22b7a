"""What the sections of speed.py measure with: networks of noise, contenders, turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import plain_haq
import torch
from torch import Tensor, nn

from haq_env.data import Dataset, Split
from haq_env.layers import LayerTable
from haq_env.networks import load_network
from haq_env.networks.trace import trace
from haq_env.policy import Bits
from haq_env.quantization.batchnorm import recalibrate_batchnorm
from haq_env.quantization.network import QuantizedNetwork

SEED, CLASSES = 0, 10


class Row(NamedTuple):
    """A figure; `met` is None where there is no target or nothing was measured."""

    figure: str
    target: str
    measured: str
    met: bool | None = None


class Net(NamedTuple):
    """A network with fresh weights, and the numbers of images that it is measured with."""

    name: str
    width: float
    size: int
    batch: int
    label: str
    bn: int = 128
    val: int = 2560
    calibration: int = 128

    def module(self) -> nn.Module:
        """Build it, with statistics of batch norm that keep the activations alive."""
        network = load_network(self.name, classes=CLASSES, image_size=self.size, width=self.width)
        recalibrate_batchnorm(network.eval(), self.images()[:16])
        return network

    def layers(self) -> LayerTable:
        """Trace it."""
        return trace(self.module(), (3, self.size, self.size), name=self.name)

    def data(self, train: int, val: int) -> Dataset:
        """Draw images of noise."""
        rng = np.random.default_rng(SEED)
        shape = (3, self.size, self.size)

        def split(count: int) -> Split:
            images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
            return Split(images, rng.integers(0, CLASSES, count))

        return Dataset(
            "noise", CLASSES, (0.5,) * 3, (0.25,) * 3, split(train), split(val), split(1)
        )

    def images(self) -> Tensor:
        """Draw one batch, as the network takes it."""
        return torch.randn(
            self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(SEED)
        )


V1_QUARTER = Net("mobilenet_v1", 0.25, 32, 64, "MobileNet-V1 0.25, 32 px")
V1_HALF = Net("mobilenet_v1", 0.5, 32, 128, "MobileNet-V1 0.5, 32 px", 64, 1280)
V1 = Net("mobilenet_v1", 1.0, 32, 64, "MobileNet-V1 1.0, 32 px", 32, 640)
RESNET20 = Net("resnet20", 1.0, 32, 128, "ResNet-20, 32 px", 64, 1280)
V2 = Net("mobilenet_v2", 1.0, 224, 16, "MobileNet-V2 1.0, 224 px", 16, 320, 16)
NETS = (V1_QUARTER, V1_HALF, V1, RESNET20, V2)


class Times:
    """Processor and wall seconds of contenders that take turns."""

    def __init__(self, contenders: dict[str, Callable[[], Any]], turns: int) -> None:
        self.cpu: dict[str, list[float]] = {name: [] for name in contenders}
        self.wall: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(turns + 1):
            for name, run in contenders.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                if turn:  # the first one builds what is kept
                    self.cpu[name].append(time.process_time() - cpu)
                    self.wall[name].append(time.perf_counter() - wall)

    def ratio(self, name: str, other: str) -> float:
        """Median ratio of processor time, turn by turn."""
        return median_ratio(self.cpu[name], self.cpu[other])

    def text(self, name: str, other: str) -> str:
        """The median ratio, that of wall time, and the medians of both sides in milliseconds."""
        wall = median_ratio(self.wall[name], self.wall[other])
        pair = " / ".join(
            f"{1000 * statistics.median(self.cpu[each]):.4g}" for each in (name, other)
        )
        return f"{self.ratio(name, other):.3g} (wall {wall:.3g}) ~ {pair} ms"

    def faster(self, figure: str, name: str, other: str, bound: float) -> Row:
        """One contender must be at least `bound` times as fast as another."""
        ratio = self.ratio(other, name)
        return Row(figure, f">= {bound:g} x", self.text(other, name), ratio >= bound)

    def at_most(self, figure: str, name: str, other: str, bound: float) -> Row:
        """One contender must take at most a share of another's time."""
        ratio = self.ratio(name, other)
        return Row(figure, f"<= {bound:g}", self.text(name, other), ratio <= bound)

    def told(self, figure: str, name: str, other: str) -> Row:
        """Show a ratio without a target."""
        return Row(figure, "", self.text(name, other))


def median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def policies(layers: LayerTable, seed: int = SEED) -> Iterator[Bits]:
    """Draw mixed policies, 2 to 8 bits, 8 in the first and in the last layer."""
    rng = np.random.default_rng(seed)
    while True:
        bits = rng.integers(2, 9, (len(layers), 2))
        bits[[0, -1]] = 8
        yield bits


def quantized(net: Net, images: Tensor) -> QuantizedNetwork:
    """The product's network under one mixed policy, ready for measuring."""
    network = QuantizedNetwork(net.module(), net.layers(), calibration_images=images)
    network.restore()
    network.set_policy(next(policies(net.layers())))
    return network


def plain(net: Net, images: Tensor) -> nn.Module:
    """The plain network under the same policy."""
    network, parts = plain_haq.plain_network(net.module(), net.layers())
    for part, (w_bits, a_bits) in zip(parts, next(policies(net.layers())).tolist(), strict=True):
        part.w_bits, part.a_bits, part.calibrating = w_bits, a_bits, True
    with torch.no_grad():
        network(images)
    for part in parts:
        part.calibrating = False
    return network


def no_gradient(network: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Any]:
    """A forward pass."""

    def run() -> None:
        with torch.no_grad():
            network(images)

    return run


def each(evaluator: Any, drawn: Iterator[Bits]) -> Callable[[], Any]:
    """An evaluation of the next policy."""
    return lambda: evaluator.evaluate(next(drawn))
