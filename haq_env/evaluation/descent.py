"""Steps of SGD, each in two halves: what a CUDA graph can repeat, and the rest.

`torch.optim.SGD` keeps a learning rate that is a number inside a captured graph for ever, and reads
one that is a tensor back to the host, which a capture forbids. So the learning rate comes last: all
that leads to the velocities is free of it, and adding them to the weights is a few kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq_env.errors import InputError

if TYPE_CHECKING:
    from haq_env.evaluation.finetune import Images, Trainable
    from haq_env.evaluation.recipe import Recipe


class Descent:
    """SGD with momentum on a network: to the last bit the weights of `torch.optim.SGD`.

    Weights of two and more dimensions decay; biases and normalisation do not, nor does what
    quantizers learn, unless it has two dimensions.

    Args:
        network: what to train; its parameters must stay the same tensors.
        images: the training images.
        recipe: momentum, weight decay and the largest norm of the gradients.

    Raises:
        InputError: nothing can be trained.
    """

    def __init__(self, network: Trainable, images: Images, recipe: Recipe) -> None:
        self._network, self._images, self._recipe = network, images, recipe
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        if not self._parameters:
            raise InputError(
                "the network has no parameter that requires a gradient, so nothing can be "
                "finetuned: unfreeze it, or take evaluator='ptq_bn'."
            )
        # there from the start, so that no step is special: 0 * momentum + g is g
        self._velocities = [torch.zeros_like(p) for p in self._parameters]
        self._moving: tuple[list[Tensor], list[Tensor]] = [], []

    def reset(self) -> None:
        """Stand still, as at the beginning; the weights are not touched."""
        torch._foreach_zero_(self._velocities)

    def push(self, index: Tensor) -> Tensor:
        """Let a batch change the velocities; `descend` then moves the weights.

        Args:
            index: numbers of training images, int64 [batch], on the device of the images.

        Returns:
            The loss, a number on the device.
        """
        logits = self._network(self._images.batch(index))
        if isinstance(logits, tuple):  # auxiliary classifiers answer too in training
            logits = logits[0]
        loss = F.cross_entropy(logits, self._images.labels[index])
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, self._recipe.max_norm)
        self._accelerate()
        return loss.detach()

    def release(self) -> None:
        """Let go of the gradients, which may lie in the memory of a graph."""
        self._moving = [], []
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def _accelerate(self) -> None:
        weights, gradients, velocities = list[Tensor](), list[Tensor](), list[Tensor]()
        for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
            if parameter.grad is not None:  # a layer may not have been reached
                weights.append(parameter)
                gradients.append(parameter.grad)
                velocities.append(velocity)
        decayed = [at for at, weight in enumerate(weights) if weight.ndim > 1]
        if self._recipe.weight_decay and decayed:
            torch._foreach_add_(
                [gradients[at] for at in decayed],
                [weights[at] for at in decayed],
                alpha=self._recipe.weight_decay,
            )
        if self._recipe.momentum:
            torch._foreach_mul_(velocities, self._recipe.momentum)
            torch._foreach_add_(velocities, gradients)
        self._moving = weights, velocities if self._recipe.momentum else gradients


@torch.no_grad()
def descend(descents: Iterable[Descent], rate: float) -> None:
    """Move the weights of networks along their velocities, all of them at once.

    Args:
        descents: each after a `push`.
        rate: the learning rate.
    """
    weights, velocities = list[Tensor](), list[Tensor]()
    for descent in descents:
        weights += descent._moving[0]
        velocities += descent._moving[1]
    torch._foreach_add_(weights, velocities, alpha=-rate)
