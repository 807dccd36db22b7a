"""Quantizers: how weights and activations lose their bits. One file and one line here for each."""

from __future__ import annotations

from haq_env.registry import Registry

__all__ = ["QUANTIZERS"]

# name -> a callable (layer, weight, inputs, settings) that returns a LayerQuantizer
QUANTIZERS = Registry(
    "quantizer",
    {
        "linear": "haq_env.quantization.linear:LinearQuantizer",
        "kmeans": "haq_env.quantization.kmeans:KMeansQuantizer",
    },
)
