"""How a policy is evaluated, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import Literal, get_args

from haq_env.errors import InputError

Inference = Literal["auto", "float", "int8"]
INFERENCES: tuple[str, ...] = get_args(Inference)
Graphs = Literal["auto", "on", "off"]
GRAPHS: tuple[str, ...] = get_args(Graphs)


@dataclass(frozen=True)
class Evaluation:
    """The answer of an evaluator.

    Attributes:
        accuracy: top-1 in percent, on held-out images.
        seconds: time it took; 0 for a remembered answer.
        cache_hit: whether the answer was remembered from an earlier call.
        stopped_early: whether the policy was given up before all images were seen, see
            `haq_env.evaluation.stopping`; the accuracy is an estimate then.
        note: why floating point measured it although integers were allowed, and on a CUDA device
            why no CUDA graphs did; empty otherwise, and for a remembered answer.
    """

    accuracy: float
    seconds: float = 0.0
    cache_hit: bool = False
    stopped_early: bool = False
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """Finetuning of a quantized network: SGD with momentum and a cosine schedule.

    Attributes:
        steps: gradient steps; 0 measures right after the recalibration of batch norm.
        batch_size: training images a step.
        learning_rate: of the first step; it follows a cosine down to zero.
        momentum: of SGD.
        weight_decay: on weights of convolutions and linear layers only.
        max_norm: gradients are scaled down to this norm, so that one bad step cannot destroy a
            small network.
        bn_images: training images that batch-norm statistics are recomputed on (EagleEye).
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 4e-5
    max_norm: float = 1.0
    bn_images: int = 512

    @property
    def name(self) -> str:
        """The tier's name, or the fields that differ from their defaults."""
        for name, known in RECIPES.items():
            if self == known:
                return name
        special = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in special)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "bn_images"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise InputError(f"recipe: {name} must be an integer, not {value!r}.")
            object.__setattr__(self, name, int(value))  # numpy's would not go into a file
        for name in ("learning_rate", "weight_decay", "momentum", "max_norm"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise InputError(f"recipe: {name} must be a number, not {value!r}.")
        if self.momentum >= 1:
            raise InputError(f"recipe: momentum must be less than 1, not {self.momentum}.")
        for name in ("steps", "weight_decay", "momentum"):
            if getattr(self, name) < 0:
                raise InputError(f"recipe: {name} must not be negative.")
        for name in ("batch_size", "learning_rate", "max_norm", "bn_images"):
            if getattr(self, name) <= 0:
                raise InputError(f"recipe: {name} must be positive.")


# The tiers that a task can name. "finetune" is HAQ's reward; "ptq_bn" is some 8 times cheaper.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "finetune": Recipe(steps=28),
        "ptq_bn": Recipe(steps=0),
    }
)

# What a found policy gets at the end, and every policy that it is compared with.
FINAL = Recipe(steps=280)
