"""What an agent sees of a layer: numbers in [0, 1], on scales that can be kept and used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq_env.errors import InputError
from haq_env.layers import LayerTable

SIZE = 8  # numbers in the embedding of a layer


class Scales(NamedTuple):
    """Smallest value and span of every number of the embedding, over the layers of a network.

    An agent that has learned on one network sees another one on the scales it knows, so that
    equal layers look equal. The index is the exception: it is the position in the network at
    hand, from 0 to 1.

    Attributes:
        low: `SIZE` numbers.
        span: `SIZE` numbers, 0 or more.
    """

    low: tuple[float, ...]
    span: tuple[float, ...]

    @classmethod
    def of(cls, layers: LayerTable) -> Scales:
        """Take the scales of a network."""
        table = _numbers(layers)
        return cls(tuple(table.min(axis=0).tolist()), tuple(np.ptp(table, axis=0).tolist()))

    @classmethod
    def read(cls, numbers: Sequence[Sequence[float]]) -> Scales:
        """Take scales that were written as two lists.

        Raises:
            InputError: they are none.
        """
        try:
            low, span = (tuple(float(number) for number in row) for row in numbers)
        except (TypeError, ValueError) as error:
            raise InputError(f"scales must be two lists of {SIZE} numbers: {error}.") from error
        if len(low) != SIZE or len(span) != SIZE or not np.isfinite([*low, *span]).all():
            raise InputError(f"scales must be two lists of {SIZE} numbers, not {numbers!r}.")
        return cls(low, span)


def embed(layers: LayerTable, scales: Scales | None = None) -> NDArray[np.float64]:
    """Return the constant part of the observation, float64 [L, 8], each column in [0, 1].

    Args:
        layers: the network, L layers.
        scales: of the network that an agent has learned on; this network's own when None.
            Values beyond them are clipped.
    """
    table = _numbers(layers)
    own = Scales.of(layers)
    low, span = np.array((scales or own).low), np.array((scales or own).span)
    low[0], span[0] = own.low[0], own.span[0]
    return np.asarray(np.clip((table - low) / np.where(span > 0, span, 1), 0.0, 1.0))


def _numbers(layers: LayerTable) -> NDArray[np.float64]:
    rows = []
    for index, layer in enumerate(layers):
        linear = layer.kind == "linear"
        rows.append(
            (
                index,
                layer.in_channels,
                layer.out_channels,
                layer.kernel[0],
                0 if linear else layer.stride[0],
                layer.input_features if linear else layer.in_size[0] * layer.in_size[1],
                layer.weights,
                layer.kind == "depthwise",
            )
        )
    return np.array(rows, dtype=np.float64)
