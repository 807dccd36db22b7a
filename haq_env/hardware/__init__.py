"""Hardware models: layers -> cost table. One file and one line here for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from haq_env.cost import CostTable
from haq_env.layers import LayerTable
from haq_env.registry import Registry

__all__ = ["HARDWARE", "Hardware"]


@runtime_checkable
class Hardware(Protocol):
    """Anything that can say what a network costs: a class with one method is enough."""

    def cost_table(self, layers: LayerTable) -> CostTable:
        """Compute the cost of every layer at every pair of bits."""
        ...


# name -> a callable that takes the model's parameters as keyword arguments and returns a Hardware
HARDWARE: Registry[Callable[..., Hardware]] = Registry(
    "hardware",
    {
        "bismo-edge": "haq_env.hardware.bismo:edge",
        "bismo-cloud": "haq_env.hardware.bismo:cloud",
        "bitfusion": "haq_env.hardware.bitfusion:BitFusion",
        "size": "haq_env.hardware.size:ModelSize",
    },
)
