"""How fast a network could be on a device at best: the roofline, from two measured peaks.

Williams, Waterman and Patterson, "Roofline", CACM 2009: a layer takes no less than its arithmetic
at the device's peak, nor than its traffic at the memory's. Both peaks are measured here, in
float32, since what a data sheet says is of other numbers and other clocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from haq_env.layers import LayerTable

_ROUNDS = 5
_BYTES = 4  # of a float


class Roof(NamedTuple):
    """What a device can do.

    Attributes:
        flops: floating-point operations a second, of a large matrix product.
        bandwidth: bytes a second, read and written, of a large copy.
    """

    flops: float
    bandwidth: float

    @classmethod
    def of(cls, device: torch.device, rows: int = 4096, numbers: int = 1 << 26) -> Roof:
        """Measure a device.

        Args:
            device: which one, with the threads that torch has now.
            rows: of the square matrices of the product.
            numbers: of the copy; more than any cache holds.
        """
        a = torch.randn(rows, rows, device=device)
        values = torch.randn(numbers, device=device)
        product, copy = torch.empty_like(a), torch.empty_like(values)
        return cls(
            2 * rows**3 / _shortest(device, lambda: torch.matmul(a, a, out=product)),
            2 * _BYTES * numbers / _shortest(device, lambda: copy.copy_(values)),
        )

    def seconds(self, layers: LayerTable, images: int) -> float:
        """Return what the quantizable layers take at least, one after the other.

        Each reads its input and its weights and writes its output once, in float32.

        Args:
            layers: the network's.
            images: that are shown to it.
        """
        total = 0.0
        for layer in layers:
            outputs = layer.out_channels * layer.pixels
            moved = images * (layer.input_features + outputs) + layer.weights
            total += max(2 * images * layer.macs / self.flops, _BYTES * moved / self.bandwidth)
        return total


def _shortest(device: torch.device, run: Callable[[], object]) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    taken = []
    for _ in range(_ROUNDS):
        wait()
        start = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - start)
    return min(taken)
