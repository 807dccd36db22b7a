"""Gymnasium environments for hardware-aware mixed-precision quantization search.

Importing this package registers the environments. Torch, scipy and the simulators are loaded
when they are first needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gymnasium import register

if TYPE_CHECKING:
    from haq_env.agents.methods import methods, search_method
    from haq_env.agents.run import episode_trial, search_with_agent
    from haq_env.agents.searching import search_policy
    from haq_env.cost import CostTable
    from haq_env.data import Dataset, Split, load_dataset
    from haq_env.env import QuantizationEnv
    from haq_env.errors import InputError
    from haq_env.evaluation import Evaluation, Evaluator, Recipe
    from haq_env.hardware import Hardware
    from haq_env.layers import Layer, LayerTable
    from haq_env.make import make_task
    from haq_env.networks import load_layers, load_network
    from haq_env.policy import Policy
    from haq_env.quantization.frozen import load_quantized, save_quantized
    from haq_env.residual import ResidualEnv
    from haq_env.search import SEARCH
    from haq_env.search.charge import Charge
    from haq_env.search.history import History, Trial, begin, measure, measure_all
    from haq_env.search.run import search_with_baseline
    from haq_env.task import Task

__version__ = "0.2.0.dev0"
__all__ = [
    "ENVIRONMENTS",
    "SEARCH",
    "Charge",
    "CostTable",
    "Dataset",
    "Evaluation",
    "Evaluator",
    "Hardware",
    "History",
    "InputError",
    "Layer",
    "LayerTable",
    "Policy",
    "QuantizationEnv",
    "Recipe",
    "ResidualEnv",
    "Split",
    "Task",
    "Trial",
    "__version__",
    "begin",
    "episode_trial",
    "load_dataset",
    "load_layers",
    "load_network",
    "load_quantized",
    "make_task",
    "measure",
    "measure_all",
    "methods",
    "save_quantized",
    "search_method",
    "search_policy",
    "search_with_agent",
    "search_with_baseline",
]

# Where the public names live: they are imported when they are first asked for.
_HOMES = {
    "SEARCH": "search",
    "Charge": "search.charge",
    "CostTable": "cost",
    "Dataset": "data",
    "Evaluation": "evaluation",
    "Evaluator": "evaluation",
    "Hardware": "hardware",
    "History": "search.history",
    "InputError": "errors",
    "Layer": "layers",
    "LayerTable": "layers",
    "Policy": "policy",
    "QuantizationEnv": "env",
    "Recipe": "evaluation",
    "ResidualEnv": "residual",
    "Split": "data",
    "Task": "task",
    "Trial": "search.history",
    "begin": "search.history",
    "episode_trial": "agents.run",
    "load_dataset": "data",
    "load_layers": "networks",
    "load_network": "networks",
    "load_quantized": "quantization.frozen",
    "make_task": "make",
    "measure": "search.history",
    "measure_all": "search.history",
    "methods": "agents.methods",
    "save_quantized": "quantization.frozen",
    "search_method": "agents.methods",
    "search_policy": "agents.searching",
    "search_with_agent": "agents.run",
    "search_with_baseline": "search.run",
}

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
    if name in _HOMES:
        return getattr(importlib.import_module(f"haq_env.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
