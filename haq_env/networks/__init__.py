"""Networks to be quantized: built-in ones, torchvision's, and the user's own.

Nothing here imports torch before a network is built: `NETWORKS` can be listed for free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from haq_env.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from haq_env.networks.loading import load_layers, load_network

__all__ = ["NETWORKS", "load_layers", "load_network"]

# Every entry is called as entry(classes=, image_size=, width=, in_channels=) -> nn.Module.
NETWORKS: Registry[Callable[..., nn.Module]] = Registry(
    "network",
    {
        "mobilenet_v1": "haq_env.networks.mobilenet:mobilenet_v1",
        "mobilenet_v1_050": "haq_env.networks.mobilenet:mobilenet_v1_050",
        "mobilenet_v2": "haq_env.networks.mobilenet:mobilenet_v2",
        "mobilenet_v2_050": "haq_env.networks.mobilenet:mobilenet_v2_050",
        "resnet18": "haq_env.networks.resnet:resnet18",
        "resnet20": "haq_env.networks.resnet:resnet20",
        "resnet50": "haq_env.networks.resnet:resnet50",
    },
)


def __getattr__(name: str) -> Any:
    if name in ("load_layers", "load_network"):
        from haq_env.networks import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
