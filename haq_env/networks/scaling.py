"""Fitting an architecture to a width multiplier and to the channels of its input."""

from __future__ import annotations

from torch import nn


def scaled(channels: int, width: float, divisor: int = 8) -> int:
    """Multiply a channel count by a width and round it to a multiple of `divisor`.

    The rule is the one of the MobileNet papers' code: to the nearest multiple, at least one
    `divisor`, and never more than 10 % below the exact product.
    """
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * exact else rounded + divisor


def with_input_channels(network: nn.Module, channels: int) -> nn.Module:
    """Replace the first convolution that takes three channels by one that takes `channels`.

    Args:
        network: a network for RGB images; it is changed in place.
        channels: channels of the new input.

    Returns:
        The same network.
    """
    if channels == 3:
        return network
    for path, conv in network.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels == 3 and conv.groups == 1:
            parent, _, leaf = path.rpartition(".")
            stem = nn.Conv2d(
                channels,
                conv.out_channels,
                _pair(conv.kernel_size),
                _pair(conv.stride),
                conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
                _pair(conv.dilation),
                bias=conv.bias is not None,
            )
            setattr(network.get_submodule(parent), leaf, stem)
            break
    return network


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[1]
