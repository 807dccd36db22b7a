"""An objective that adds up exactly, so that the best policy can be computed and proved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haq_env.cost import Grid
from haq_env.errors import InputError
from haq_env.evaluation.recipe import Evaluation
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits, as_bits, as_policy


class AdditiveEvaluator:
    """Accuracy from a loss that is a sum over tensors: scale x 4^-bits each.

    The mean squared error of a uniform quantizer falls by four with every bit, and to second
    order the loss is linear in it. Accuracy is
    100 exp(-rate x loss / reference), without noise.

    Args:
        scales: float64 [L, 2], positive: how much each layer's weights and activations matter.
        reference: the loss that counts as 1, such as that of a uniform policy.
        rate: how fast the accuracy falls.

    Raises:
        InputError: wrong shape, or a scale that is not positive.
    """

    float_accuracy = 100.0

    def __init__(self, scales: NDArray[np.float64], reference: float, rate: float = 0.1) -> None:
        scales = np.asarray(scales, dtype=np.float64)
        if scales.ndim != 2 or scales.shape[1] != 2 or not (scales > 0).all():
            raise InputError("scales must be positive, [layers, 2].")
        if not reference > 0:
            raise InputError(f"reference must be positive, not {reference}.")
        self._scales, self._reference, self._rate = scales, reference, rate

    def loss(self, bits: Bits) -> Grid:
        """Return the loss of policies [..., L, 2], float64 [...]."""
        bits = as_bits(bits, len(self._scales))
        return np.asarray((self._scales * 0.25**bits).sum(axis=(-2, -1)))

    def evaluate(self, bits: Bits) -> Evaluation:
        """Return the accuracy of a policy, int64 [L, 2].

        Raises:
            InputError: wrong shape, or bits outside 1 to 8.
        """
        bits = as_policy(bits, len(self._scales))
        return Evaluation(self.accuracy(float(self.loss(bits))))

    def accuracy(self, loss: float) -> float:
        """Return the accuracy that belongs to a loss, in percent."""
        return float(100 * np.exp(-self._rate * loss / self._reference))

    def pairs(self) -> Grid:
        """Return the loss of every pair of bits, float64 [L, 8, 8] as [layer, w - 1, a - 1]."""
        side = self._scales[..., None] * 0.25 ** np.arange(1, MAX_BITS + 1)
        return np.asarray(side[:, WEIGHT, :, None] + side[:, ACTIVATION, None, :])
