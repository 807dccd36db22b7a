"""Recording what a device does once and repeating it, as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch

# PyTorch hands out 32 streams and begins again: more lanes than that would wait for each other.
MOST = 16
# Of the free memory: the eager passes around the graphs leave pieces behind, and others may come.
SHARE = 0.5

Part = Callable[[], object]


class Recorder(Protocol):
    """Turns work on a device into something that repeats it.

    Work is given as parts that may run at the same time: each touches tensors of its own, and they
    read nothing on the host.
    """

    def record(self, parts: Sequence[Part]) -> Callable[[], None]:
        """Return what runs all the parts.

        They may be run any number of times in here as well, or not at all: the caller puts back
        what they change. Only the latest recording may be repeated.
        """
        ...

    def held(self) -> int:
        """Return how many bytes of the device are held by what is alive in this process."""
        ...

    def lanes(self, held: int) -> int:
        """Return how many lanes fit, after the first one was run; `held` is from before it."""
        ...


class CudaGraphs:
    """Captures the parts in one CUDA graph, each on a stream of its own, so that they overlap.

    Parts that come for the first time are run before, on the streams of the capture: libraries
    make their handles and workspaces then, which is forbidden while a capture is under way.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._main, *self._sides = _streams(1 + MOST)
        self._rehearsed: set[Hashable] = set()
        self._latest: torch.cuda.CUDAGraph | None = None

    def record(self, parts: Sequence[Part]) -> Callable[[], None]:
        """Return what launches the graph on the current stream.

        Raises:
            RuntimeError: something cannot be captured, or memory does not suffice.
        """
        with torch.cuda.device(self._device):
            if not self._rehearsed.issuperset(parts):
                self._main.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._main):
                    self._side_by_side(parts)
                torch.cuda.current_stream().wait_stream(self._main)
                self._rehearsed.update(parts)
            # One pool for all graphs, which never run at the same time. It lives as long as one of
            # them does, so the former one goes only when the next one is there.
            graph, former = torch.cuda.CUDAGraph(), self._latest
            pool = None if former is None else former.pool()
            with torch.cuda.graph(graph, pool=pool, stream=self._main):
                self._side_by_side(parts)
        self._latest = graph
        return graph.replay

    def held(self) -> int:
        """Return how many bytes tensors and graphs hold."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self._device)

    def lanes(self, held: int) -> int:
        """Return how many lanes fit if each takes what the first one has."""
        taken = self.held() - held
        free, _ = torch.cuda.mem_get_info(self._device)
        return lanes_in(free, taken)

    def _side_by_side(self, parts: Sequence[Part]) -> None:
        sides = self._sides[: len(parts)]
        for part, side in zip(parts, sides, strict=True):
            side.wait_stream(self._main)
            with torch.cuda.stream(side):
                part()
        for side in sides:
            self._main.wait_stream(side)


def _streams(count: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream() for _ in range(count)]  # type: ignore[no-untyped-call]


def lanes_in(free: int, taken: int) -> int:
    """Return how many lanes there can be, 1 to `MOST`.

    Args:
        free: bytes that are left beside the first lane.
        taken: bytes that the first lane has taken.
    """
    return min(MOST, 1 + int(SHARE * free) // max(1, taken))
