"""Quantizers: how weights and activations lose their bits. One file and one line here for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from haq_env.policy import ALL_BITS, MAX_BITS
from haq_env.registry import Registry

if TYPE_CHECKING:
    from haq_env.quantization.scheme import LayerQuantizer

__all__ = ["QUANTIZERS", "widths"]

_LINEAR = "haq_env.quantization.linear:LinearQuantizer"
_KMEANS = "haq_env.quantization.kmeans:KMeansQuantizer"
_LSQ = "haq_env.quantization.lsq:LSQQuantizer"
# name -> a callable (layer, weight, inputs, settings) that returns a LayerQuantizer
QUANTIZERS: Registry[Callable[..., LayerQuantizer]] = Registry(
    "quantizer",
    {
        "linear": _LINEAR,
        "kmeans": _KMEANS,
        "lsq": _LSQ,
    },
)

# Of these classes, known without loading torch: an environment is made without it.
_WIDTHS = {
    _LINEAR: (ALL_BITS, ALL_BITS),
    _KMEANS: (ALL_BITS, range(0)),
    _LSQ: (range(2, MAX_BITS + 1), ALL_BITS),
}


def widths(name: str) -> tuple[range, range]:
    """Return the widths that a quantizer has for weights and for activations.

    Raises:
        InputError: there is no such quantizer, or it says no widths.
    """
    known = _WIDTHS.get(QUANTIZERS.address(name) or "")
    if known is not None:
        return known
    from haq_env.quantization.scheme import widths_of

    return widths_of(QUANTIZERS[name])
