"""Re-estimation of batch-norm statistics: what quantization shifted is measured again.

Quantized weights and activations move the mean and the variance of every pre-activation; stale
statistics then cost far more accuracy than the lost bits do. Li et al., "EagleEye", ECCV 2020,
show that adapted statistics also rank candidates best before any finetuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq_env.errors import InputError
from haq_env.networks.modes import kept_modes

# Images at once, here and where accuracies are measured: prefix reuse repeats both to the last bit,
# and sums in other batches would round otherwise.
BATCH = 128


def recalibrate_batchnorm(module: nn.Module, images: Tensor, batch_size: int = BATCH) -> None:
    """Replace all running statistics by the plain average over batches of the images.

    Only batch-norm layers are in training mode meanwhile (dropout stays off), no gradient is
    recorded, and modes, momenta and `num_batches_tracked` are afterwards as they were.

    Args:
        module: the network; its running means and variances are changed in place.
        images: [N, ...], N at least 1; keep them fixed for a reward that does not vary.
        batch_size: images in a batch, positive. The images are cut into batches of almost equal
            size of at most this many, so that no small rest counts as much as a full batch.

    Raises:
        InputError: no images, or a batch size below 1.
    """
    if len(images) < 1 or batch_size < 1:
        raise InputError(
            f"batch-norm statistics need images in batches of at least one, not {len(images)} "
            f"images in batches of {batch_size}."
        )
    norms = tracking_norms(module)
    if not norms:
        return
    batches = -(-len(images) // batch_size)
    with kept_modes(module), _only_training(module, norms), torch.no_grad(), enough_values():
        for batch in images.tensor_split(batches):
            module(batch)


def tracking_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch-norm layers that keep statistics, in the order of registration."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def statistics(norm: _BatchNorm) -> list[Tensor]:
    """Return the running mean and the running variance, [C] each, where there are any."""
    return [each for each in (norm.running_mean, norm.running_var) if each is not None]


@contextmanager
def enough_values() -> Iterator[None]:
    """Say what to change where batch norm has to train on a single value for each channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "batch norm cannot be trained on a single value for each channel, as one image on a "
            "1 x 1 map is: give the recipe a larger batch_size and bn_images."
        ) from error


@contextmanager
def _only_training(module: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    before = [[each.clone() for each in statistics(norm)] for norm in norms]
    module.eval()
    for norm in norms:
        if norm.num_batches_tracked is not None:
            # on the CPU: every layer reads it for every batch, and a GPU would be waited for
            norm.num_batches_tracked = torch.zeros_like(norm.num_batches_tracked, device="cpu")
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.training = True
    try:
        yield
        for norm, former in zip(norms, before, strict=True):
            # one that looks at no batch (frozen, or only its numbers are used) keeps what it has
            if norm.num_batches_tracked is not None and not int(norm.num_batches_tracked):
                for now, was in zip(statistics(norm), former, strict=True):
                    now.copy_(was)
    finally:
        for norm, momentum, tracked in kept:
            norm.momentum = momentum
            norm.num_batches_tracked = tracked
