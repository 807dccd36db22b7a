"""Quantizers: how weights and activations lose their bits. One file and one line here for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from haq_env.registry import Registry

if TYPE_CHECKING:
    from haq_env.quantization.scheme import LayerQuantizer

__all__ = ["QUANTIZERS"]

# name -> a callable (layer, weight, inputs, settings) that returns a LayerQuantizer
QUANTIZERS: Registry[Callable[..., LayerQuantizer]] = Registry(
    "quantizer",
    {
        "linear": "haq_env.quantization.linear:LinearQuantizer",
        "kmeans": "haq_env.quantization.kmeans:KMeansQuantizer",
    },
)
