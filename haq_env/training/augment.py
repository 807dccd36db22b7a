"""Shifting and mirroring batches of images, on the device that they are on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from haq_env.training.settings import Augmentation

PADDING = 4  # He et al. 2016


def augment(
    images: Tensor, generator: torch.Generator, how: Augmentation, padding: int = PADDING
) -> Tensor:
    """Shift every image by up to `padding` pixels, and mirror every second one.

    The standard augmentation of CIFAR-10 (He et al. 2016, section 4.2), a different shift for each
    image. What comes in at the border is the image's mirror image rather than black, as in Keller
    Jordan's airbench (arXiv 2404.00498).

    Args:
        images: [N, C, H, W], H and W above `padding`.
        generator: what chance is drawn from; on the device of the images.
        how: ``"crop-flip"``; ``"crop"`` without mirroring, for what has a left and a right such as
            digits; ``"none"``.
        padding: longest shift in pixels.

    Returns:
        [N, C, H, W], in the memory format of the images.
    """
    if how == "none":
        return images
    count, _, height, width = images.shape
    device = images.device
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    padded = F.pad(images, (padding,) * 4, mode="reflect").permute(0, 2, 3, 1)
    corner = torch.randint(2 * padding + 1, (2, count, 1), generator=generator, device=device)
    rows = corner[0] + torch.arange(height, device=device)
    columns = corner[1] + torch.arange(width, device=device)
    if how == "crop-flip":
        mirrored = torch.rand((count, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    number = torch.arange(count, device=device)[:, None, None]
    cut = padded[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return cut.contiguous(memory_format=form)
