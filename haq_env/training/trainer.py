"""Training a float network epoch by epoch, so that it can stop and go on."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from haq_env.data import Dataset
from haq_env.errors import InputError, first_line, unknown_name
from haq_env.evaluation.checks import check_fits
from haq_env.evaluation.finetune import Images, accuracy, dropout_seeded, parameter_groups
from haq_env.quantization.batchnorm import enough_values
from haq_env.training.augment import PADDING, augment
from haq_env.training.settings import Precision, Training


@dataclass(frozen=True)
class Epoch:
    """One row of a training's curve."""

    epoch: int
    """From 1."""
    learning_rate: float
    """Of the last step."""
    loss: float
    """Mean over the training images, as they were shown."""
    train: float
    """Share of them that was right when they were shown, in percent."""
    val: float
    """Top-1 on the held-out images after the epoch, in percent."""
    seconds: float
    """Time that it took."""
    device: str
    """What computed it, and how."""


class Trainer:
    """A training between two epochs.

    Everything that is drawn by chance in an epoch follows from the seed and the epoch's number, so
    weights, optimizer and rows are the whole state. On a CPU and with the same number of threads,
    a training that was interrupted ends in the same bits as one that was not.

    Args:
        module: the network, with its first weights; it is moved to the device.
        data: the data set; its test images are not used here.
        training: the recipe.
        device: torch device.
        precision: ``"auto"`` computes forward and backward in bfloat16 on a GPU and in float32
            elsewhere.
        compiled: whether the steps are compiled first (torch.compile; it needs a C++ compiler).
            On two threads of a CPU that took 0.6 of the time for MobileNet-V1 0.5, and on one
            thread 1.4 times for ResNet-20. It decides last digits.

    Raises:
        InputError: the network and the images do not go together, or nothing of it can be trained;
            there are fewer training images than a batch holds, or they are too small to be shifted;
            or nothing can be compiled here.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Dataset,
        training: Training,
        device: torch.device,
        precision: Precision = "auto",
        compiled: bool = False,
    ) -> None:
        if precision not in get_args(Precision):
            raise unknown_name("precision", precision, get_args(Precision))
        if len(data.train) < training.batch_size:
            raise InputError(
                f"data set {data.name!r} has {len(data.train)} training images, fewer than a batch "
                f"of {training.batch_size}."
            )
        side = min(data.input_shape[1:])
        if training.augmentation != "none" and side <= PADDING:
            raise InputError(
                f"images of {side} pixels cannot be shifted by {PADDING}: take augmentation 'none'."
            )
        self.training, self.device, self.rows = training, device, list[Epoch]()
        self.steps = len(data.train) // training.batch_size  # an epoch
        self._narrow = device.type == "cuda" if precision == "auto" else precision == "bfloat16"
        self._images = Images(data.train, data, device)
        self._held_out = Images(data.val, data, device)
        self.module = self._laid_out(module, data)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = self.module
        if compiled:
            _check_compiler(device)
            self._forward = torch.compile(self.module)
        arithmetic = "bfloat16" if self._narrow else "float32"
        self._about = ", ".join([_device_name(device), arithmetic, *["compiled"] * compiled])
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise InputError("the network has no parameter that requires a gradient: unfreeze it.")
        self._average = _average(module, training.ema)
        self._optimizer = torch.optim.SGD(
            parameter_groups(module, training.weight_decay),
            lr=training.learning_rate,
            momentum=training.momentum,
            nesterov=training.momentum > 0,
            foreach=True,
        )

    def _laid_out(self, module: nn.Module, data: Dataset) -> nn.Module:
        """Move a network to the device, and see that it fits before any epoch is spent."""
        image = self._images.batch(slice(0, 1))
        for self._layout in (torch.channels_last, torch.contiguous_format):
            # torch knows this call, but its annotations do not
            module = module.to(self.device, memory_format=self._layout)  # type: ignore[call-overload]
            try:
                check_fits(module, data, image.contiguous(memory_format=self._layout))
            except InputError:  # a forward may take views that only the plain layout has
                if self._layout == torch.contiguous_format:
                    raise
            else:
                break
        return module

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.rows) >= self.training.epochs

    @property
    def result(self) -> nn.Module:
        """The network to keep: the average where there is one."""
        return self.module if self._average is None else self._average.module

    def epoch(self, after_step: Callable[[], None] | None = None) -> Epoch:
        """Train for one epoch and measure on the held-out images.

        Args:
            after_step: called after every step, to show progress.

        Raises:
            InputError: the loss is no number any more, or batch norm has too few values to train.
        """
        start, number, training = time.monotonic(), len(self.rows), self.training
        rng = np.random.default_rng([training.seed, number])
        order = torch.from_numpy(rng.permutation(len(self._images))).to(self.device)
        chance = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        totals = torch.zeros(2, device=self.device)
        self.module.train()
        rate = 0.0
        with dropout_seeded(int(rng.integers(2**62)), self.device), enough_values():
            for step in range(self.steps):
                rate = training.rate(number * self.steps + step, training.epochs * self.steps)
                for group in self._optimizer.param_groups:
                    group["lr"] = rate
                first = step * training.batch_size
                totals += self._step(order[first : first + training.batch_size], chance)
                if after_step is not None:
                    after_step()
        loss, right = (totals / (self.steps * training.batch_size)).tolist()
        if not math.isfinite(loss):
            raise InputError(
                f"the training diverged in epoch {number + 1} (loss {loss}): begin again with a "
                "smaller learning_rate."
            )
        val = accuracy(self.result, self._held_out)
        seconds = time.monotonic() - start
        row = Epoch(number + 1, rate, loss, 100 * right, val, seconds, self._about)
        self.rows.append(row)
        return row

    def _step(self, index: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        """Take one step; return the sum of losses and the number of right answers."""
        labels = self._images.labels[index]
        batch = self._images.batch(index).contiguous(memory_format=self._layout)
        batch = augment(batch, chance, self.training.augmentation)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._narrow):
            logits = self._forward(batch)
        if isinstance(logits, tuple):  # of heads that help training, the first one counts
            logits = logits[0]
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.training.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.module)
        right = (logits.detach().argmax(dim=1) == labels).sum()
        return torch.stack((loss.detach() * len(labels), right.float()))

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs: tensors, numbers and text."""
        return {
            "module": self.module.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rows": [asdict(row) for row in self.rows],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a training with the same settings.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is not of such a training.
        """
        self.module.load_state_dict(state["module"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        names = [each.name for each in fields(Epoch)]
        self.rows = [Epoch(**{name: row[name] for name in names}) for row in state["rows"]]

    def accuracies(self, data: Dataset) -> dict[str, float]:
        """Measure what the network is worth in the end: held-out and test images, in percent."""
        test = Images(data.test, data, self.device)
        return {
            "val": accuracy(self.result, self._held_out),
            "test": accuracy(self.result, test),
        }

    def round_to_half(self, tolerance: float = 0.1) -> tuple[bool, float, float]:
        """Round weights to fp16, unless the held-out images show a loss.

        Args:
            tolerance: points of top-1 that may be lost.

        Returns:
            Whether they are rounded now; the accuracy before and after, in percent.
        """
        wide = copy.deepcopy(self.result.state_dict())
        before = accuracy(self.result, self._held_out)
        with torch.no_grad():
            for tensor in self.result.state_dict().values():
                if torch.is_tensor(tensor) and tensor.is_floating_point() and tensor.dim() > 1:
                    tensor.copy_(tensor.half().float())
        after = accuracy(self.result, self._held_out)
        fits = after >= before - tolerance
        if not fits:
            self.result.load_state_dict(wide)
        return fits, before, after


def _average(module: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(module, multi_avg_fn=average, use_buffers=True)


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:  # many kinds, and most of them torch's own
        raise InputError(f"training steps cannot be compiled here: {first_line(error)}") from error


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
