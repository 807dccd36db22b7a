"""Gymnasium environments for hardware-aware mixed-precision quantization search.

Importing this package registers the environments. Torch, scipy and the simulators are loaded
when they are first needed.
"""

from __future__ import annotations

from typing import Any

from gymnasium import register

__version__ = "0.1.0"
__all__ = ["ENVIRONMENTS", "QuantizationEnv", "Task", "__version__", "make_task"]

# One line for each environment: what differs from the arguments' defaults.
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "HAQ-BISMO-Edge": {"hardware": "bismo-edge", "metric": "latency", "budget": "w3a2"},
    "HAQ-BISMO-Cloud": {"hardware": "bismo-cloud", "metric": "latency", "budget": "w3a2"},
    "HAQ-BitFusion": {"hardware": "bitfusion", "metric": "latency", "budget": "w2a8"},
    "HAQ-BitFusion-Energy": {"hardware": "bitfusion", "metric": "energy", "budget": "w2a8"},
    "HAQ-ModelSize": {
        "hardware": "size",
        "metric": "size",
        "budget": "w2a8",
        "bits": [1, 8],  # a list, as JSON gives it back
        "quantizer": "kmeans",
    },
}
# What an agent decides in them: bits as a number, bits as a choice, or corrections of a table.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("haq_env.env:QuantizationEnv", {}),
    "-Discrete": ("haq_env.env:QuantizationEnv", {"actions": "discrete"}),
    "-Residual": ("haq_env.residual:ResidualEnv", {}),
}
for _name, _settings in ENVIRONMENTS.items():
    for _suffix, (_entry, _actions) in VARIANTS.items():
        register(id=f"{_name}{_suffix}-v0", entry_point=_entry, kwargs={**_settings, **_actions})


def __getattr__(name: str) -> Any:
    if name == "QuantizationEnv":
        from haq_env.env import QuantizationEnv

        return QuantizationEnv
    if name in ("Task", "make_task"):
        from haq_env import task

        return getattr(task, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
