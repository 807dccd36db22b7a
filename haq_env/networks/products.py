"""Products of activations, such as attention's: they have no weights, so no layer counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
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
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

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
        return func(*args, **(kwargs or {}))

    def named(self) -> tuple[str, ...]:
        """Return one text for each function."""
        return tuple(
            f"{count} product{'s' * (count > 1)} of activations ({name})"
            for name, count in self.seen.items()
        )
