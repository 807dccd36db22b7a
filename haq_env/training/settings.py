"""What a float training is asked to do. Nothing here needs torch, so flags are known at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from haq_env.errors import InputError, unknown_name

if TYPE_CHECKING:
    from haq_env.data import Dataset

Schedule = Literal["cosine", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]
Augmentation = Literal["crop-flip", "crop", "none"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)
# Share of the steps in which the learning rate rises from nothing; Smith & Topin 2017 for the last.
_RISING: dict[str, float] = {"cosine": 0.05, "one-cycle": 0.25}
# Below so many training images a set is small: batches of 128 would be too few steps an epoch.
FEW_IMAGES = 10_000


@dataclass(frozen=True)
class Training:
    """How a network is trained: SGD with Nesterov's momentum.

    The defaults are those for CIFAR-10; `for_images` knows those for other sets.

    Raises:
        InputError: a setting is unknown or out of range.
    """

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 0.1
    """The highest one."""
    schedule: Schedule = "cosine"
    """How it rises and falls: a short rise and a cosine, or a quarter up and three down."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On the weights of convolutions and linear layers."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    ema: float = 0.0
    """Decay, a step, of a moving average that is kept instead of the weights; 0 for none."""
    augmentation: Augmentation = "crop-flip"
    """What is done to training images."""
    seed: int = 0
    """Of the first weights, the order of images and the augmentation."""

    def __post_init__(self) -> None:
        if self.schedule not in _RISING:
            raise unknown_name("schedule", self.schedule, _RISING)
        if self.augmentation not in AUGMENTATIONS:
            raise unknown_name("augmentation", self.augmentation, AUGMENTATIONS)
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}.")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), not {getattr(self, name)}.")
        if self.weight_decay < 0:
            raise InputError(f"weight_decay must not be negative, but it is {self.weight_decay}.")
        if not 0 <= self.seed < 2**63:  # what torch takes
            raise InputError(f"seed must be 0 to {2**63 - 1}, not {self.seed}.")

    @classmethod
    def for_images(cls, data: Dataset, **given: Any) -> Training:
        """Return the settings that suit a data set, where nothing else is given.

        Fewer than 10,000 training images are shown 30 times in batches of 32, more are shown 100
        times in batches of 128. Grey images are not augmented: digits and letters have a left and
        a right, and often fill their image.

        Args:
            data: the data set.
            **given: settings by name; None counts as not given.

        Raises:
            InputError: a setting is unknown or out of range.
        """
        few, grey = len(data.train) < FEW_IMAGES, data.input_shape[0] == 1
        suited: dict[str, Any] = {"epochs": 30, "batch_size": 32} if few else {}
        if grey:
            suited["augmentation"] = "none"
        return cls(**{**suited, **{k: v for k, v in given.items() if v is not None}})

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, from 0, among so many."""
        done, rising = (step + 0.5) / steps, _RISING[self.schedule]
        if done < rising:
            return self.learning_rate * done / rising
        left = (1 - done) / (1 - rising)
        falling = 0.5 * (1 - math.cos(math.pi * left)) if self.schedule == "cosine" else left
        return self.learning_rate * falling
