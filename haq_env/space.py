"""The decision space of a search: what is decided at each step, and what is allowed there."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError, unknown_name
from haq_env.layers import LayerTable
from haq_env.policy import ACTIVATION, ALL_BITS, MAX_BITS, MIN_BITS, WEIGHT, Bits


class Step(NamedTuple):
    """One decision: the bits of one side (0 weights, 1 activations) of one layer."""

    layer: int
    side: int


@dataclass(frozen=True, eq=False)
class BitSpace:
    """Which bits each layer's weights and activations may have, and in which order they are set.

    Attributes:
        allowed: bool [L, 2, 8]; ``allowed[layer, side, b - 1]`` says whether b bits may be used.
            A side with a single allowed width is pinned: no step decides it.
        steps: the decisions of one episode, in order.
        bits: smallest and largest width of a step.
    """

    allowed: NDArray[np.bool_] = field(repr=False)
    steps: tuple[Step, ...] = field(repr=False)
    bits: tuple[int, int]

    @classmethod
    def of(
        cls,
        layers: LayerTable,
        bits: Sequence[int] = (2, 8),
        *,
        pinned: Sequence[int | str] = (0, -1),
        widths: tuple[range, range] = (ALL_BITS, ALL_BITS),
    ) -> BitSpace:
        """Build the space of HAQ: layer by layer, weight bits and then activation bits.

        Args:
            layers: the network.
            bits: smallest and largest width, within 1 to 8.
            pinned: layers that stay at 8 bits, or at the largest width that there is, by index or
                by name; the first and the last by default (HAQ section 4).
            widths: what the quantizer has for weights and for activations. Where it has none for
                activations, they stay at 8 bits and have no step (HAQ's model-size search).

        Raises:
            InputError: bits outside 1 to 8, min above max, no such layer, or nothing left to
                decide.
        """
        low, high = _check_range(bits)
        allowed = np.zeros((len(layers), 2, MAX_BITS), dtype=bool)
        for side, has in enumerate(widths):
            usable = [width for width in has if low <= width <= high]
            if has and not usable:
                raise InputError(
                    f"bits = {tuple(bits)}: the quantizer has {('weights', 'activations')[side]} "
                    f"of {has.start} to {has.stop - 1} bits only."
                )
            allowed[:, side, np.array(usable, dtype=np.int64) - 1] = True
        for index, layer in enumerate(layers):
            if layer.signed_input and low == 1:  # one bit would be the sign and nothing else
                allowed[index, ACTIVATION, 0] = False
        if not widths[ACTIVATION]:
            allowed[:, ACTIVATION] = _only(MAX_BITS)
        for index in _indices(pinned, layers.names):
            for side, has in enumerate(widths):
                allowed[index, side] = _only(max(has, default=MAX_BITS))
        if not allowed.any(axis=2).all():
            signed = next(i for i in range(len(layers)) if not allowed[i].any(axis=1).all())
            raise InputError(
                f"bits = {tuple(bits)} leaves nothing for the signed input of layer "
                f"{layers[signed].name!r}: signed activations need 2 bits or more."
            )
        free = allowed.sum(axis=2) > 1
        steps = tuple(
            Step(layer, side)
            for layer in range(len(layers))
            for side in (WEIGHT, ACTIVATION)
            if free[layer, side]
        )
        if not steps:
            raise InputError(
                f"nothing to search: bits = {tuple(bits)} and {len(pinned)} pinned layers leave "
                f"one width for every one of the {len(layers)} layers of {layers.network!r}."
            )
        return cls(allowed, steps, (low, high))

    @property
    def lowest(self) -> Bits:
        """Return the policy with the fewest bits, int64 [L, 2]."""
        return np.asarray(self.allowed.argmax(axis=2) + 1, dtype=np.int64)

    @property
    def highest(self) -> Bits:
        """Return the policy with the most bits, int64 [L, 2]."""
        return np.asarray(MAX_BITS - self.allowed[:, :, ::-1].argmax(axis=2), dtype=np.int64)

    def pairs(self) -> NDArray[np.bool_]:
        """Return which pairs of bits are allowed, bool [L, 8, 8] as [layer, w - 1, a - 1]."""
        return np.asarray(self.allowed[:, WEIGHT, :, None] & self.allowed[:, ACTIVATION, None, :])

    def clip(self, bits: Bits) -> Bits:
        """Move every width into its allowed range; pinned ones return to their value."""
        return np.clip(bits, self.lowest, self.highest)

    def uniform(self, w_bits: int, a_bits: int) -> Bits:
        """Return the policy with the same bits everywhere but where they are pinned."""
        return self.clip(
            np.tile(np.array([w_bits, a_bits], dtype=np.int64), (len(self.allowed), 1))
        )

    def random(self, rng: np.random.Generator, count: int) -> Bits:
        """Draw policies with independent uniform bits, int64 [count, L, 2]."""
        low, high = self.lowest, self.highest
        return rng.integers(low, high + 1, size=(count, *low.shape), dtype=np.int64)


def _check_range(bits: Sequence[int]) -> tuple[int, int]:
    try:
        low, high = (operator.index(width) for width in bits)
    except (TypeError, ValueError) as error:
        raise InputError(f"bits must be two integers (smallest, largest), not {bits!r}.") from error
    if low < MIN_BITS or high > MAX_BITS:
        raise InputError(f"bits must lie within {MIN_BITS} to {MAX_BITS}, not {bits!r}.")
    if low > high:
        raise InputError(f"bits: the smallest width {low} is above the largest {high}.")
    return low, high


def _only(width: int) -> NDArray[np.bool_]:
    return np.asarray(np.arange(1, MAX_BITS + 1) == width)


def _indices(pinned: object, names: Sequence[str]) -> list[int]:
    """Return which layers are meant by indices and names."""
    if isinstance(pinned, str) or not isinstance(pinned, Sequence):
        raise InputError(f"pinned must be a sequence of layers, not {pinned!r}.")
    for layer in pinned:
        if isinstance(layer, str) and layer not in names:
            raise unknown_name("layer", layer, names)
        number = isinstance(layer, (int, np.integer)) and not isinstance(layer, bool)
        if not isinstance(layer, str) and not (number and -len(names) <= layer < len(names)):
            raise InputError(f"pinned: there is no layer {layer!r} among {len(names)}.")
    return [names.index(layer) if isinstance(layer, str) else int(layer) for layer in pinned]
