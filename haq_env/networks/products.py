"""Products of activations, such as attention's: they have no weights, so no layer counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PRODUCTS: Mapping[Callable[..., Any], str] = {
    torch.matmul: "matmul",
    torch.Tensor.matmul: "matmul",
    torch.Tensor.__matmul__: "matmul",
    torch.bmm: "bmm",
    torch.Tensor.bmm: "bmm",
    torch.baddbmm: "baddbmm",
    torch.einsum: "einsum",
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
}


class Products(TorchFunctionMode):
    """Counts them, while a network runs.

    Attributes:
        seen: name of the function to how often it was called.
        called: paths of the watched layers that have run.
        read: paths of layers with whose weights something else has computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.called: set[str] = set()
        self.read: set[str] = set()
        self._weights: Mapping[str, torch.Tensor] = {}
        self._running: str | None = None

    @contextmanager
    def watching(self, layers: Mapping[str, nn.Conv2d | nn.Linear]) -> Iterator[None]:
        """Note for so long which layers run, and which weights something else computes with."""
        self._weights = {path: part.weight for path, part in layers.items()}

        def begin(path: str, *_: object) -> None:
            self.called.add(path)
            self._running = path

        def end(*_: object) -> None:
            self._running = None

        hooks = [p.register_forward_pre_hook(partial(begin, path)) for path, p in layers.items()]
        hooks += [part.register_forward_hook(end) for part in layers.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what is called, and call it."""
        if func in _PRODUCTS:
            self.seen[_PRODUCTS[func]] += 1
        result = func(*args, **(kwargs or {}))
        # what asks for a size, a type or a gradient computes nothing with it
        if isinstance(result, torch.Tensor) and getattr(func, "__name__", "") != "__get__":
            given = [*args, *(kwargs or {}).values()]
            self.read |= {
                path
                for path, weight in self._weights.items()
                if path != self._running and any(each is weight for each in given)
            }
        return result

    def named(self) -> tuple[str, ...]:
        """Return one text for each function."""
        return tuple(
            f"{count} product{'s' * (count > 1)} of activations ({name})"
            for name, count in self.seen.items()
        )
