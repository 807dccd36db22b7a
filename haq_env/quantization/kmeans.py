"""Weight sharing: every weight of a layer is one of 2^bits centroids; activations stay in float.

Source: Han, Mao and Dally, "Deep Compression", ICLR 2016; the rule for finetuning is the one of
Wang et al., "HAQ", CVPR 2019.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from haq_env.layers import Layer
from haq_env.policy import ALL_BITS, MAX_BITS, MIN_BITS
from haq_env.quantization.clustering import SortedValues
from haq_env.quantization.scheme import Settings


class KMeansQuantizer:
    """Shared weights of one layer, with codebooks for every width found once.

    Which cluster a weight belongs to is decided by the first pass after its bits are set and
    stays fixed while the network is trained; the gradient of a quantized weight goes to the float
    weight. After a step of the optimizer, `after_step` moves the weights back onto centroids, in
    one of two ways:

    - ``"haq"``: every weight becomes the mean of its cluster, so a centroid moves by the *mean*
      of its members' steps and the learning rate is that of ordinary training;
    - ``"deep-compression"``: a centroid moves by the *sum* of its members' steps, which is the
      gradient of the loss by a shared weight. Clusters hold up to thousands of weights, so the
      learning rate has to be smaller by about that factor.

    Args:
        layer: what the network says of the layer; its name is used in error messages.
        weight: the float weights.
        inputs: not used: activations are not quantized.
        settings: the centroid update.

    Attributes:
        codebooks: the clusters of the float weights at 1 to 8 bits.
        weight_mse: see `LayerQuantizer`.
        activation_mse: zeros.
        activation_bits: empty: activation bits are ignored.

    Raises:
        InputError: NaN or infinite weights.
    """

    weight_bits = ALL_BITS
    activation_bits = range(0)

    def __init__(self, layer: Layer, weight: Tensor, inputs: Tensor, settings: Settings) -> None:
        values = SortedValues(weight.detach().float().cpu().numpy(), f"weights of {layer.name!r}")
        self.centroid_update = settings.centroid_update
        self.codebooks = [values.cluster(bits) for bits in range(MIN_BITS, MAX_BITS + 1)]
        self.weight_mse = np.array([book.mse for book in self.codebooks])
        self.activation_mse = np.zeros(MAX_BITS)
        self._bits = 0  # the width that the following is for; 0 when there is nothing
        self._members: Tensor | None = None  # cluster of every weight, uint8, flat
        self._centroids: Tensor | None = None
        self._version = -1  # of the weights that the centroids are the means of

    def weight(self, weight: Tensor, bits: int) -> Tensor:
        """Return the centroid of every weight; the gradient passes unchanged."""
        members, centroids = self._clusters(weight, bits)
        return cast(Tensor, _Share.apply(weight, centroids, members))

    def activation(self, inputs: Tensor, bits: int) -> Tensor:
        """Return the inputs as they are."""
        return inputs

    def clips_like_relu(self, ceiling: float) -> bool:
        """Return False: the inputs stay as they are."""
        return False

    def after_step(self, weight: Tensor, bits: int) -> None:
        """Replace every weight by its moved centroid, in place."""
        with torch.no_grad():
            if self._bits != bits or self._members is None or self._centroids is None:
                self._clusters(weight, bits)
            else:
                self._move(weight)
            assert self._members is not None
            assert self._centroids is not None
            weight.copy_(_gather(self._centroids, self._members, weight))
            self._version = weight._version

    def reset(self) -> None:
        """Forget to which clusters the weights belong."""
        self._bits = 0
        self._members = self._centroids = None

    def _clusters(self, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            if self._bits != bits or self._members is None:
                thresholds = torch.as_tensor(self.codebooks[bits - 1].thresholds)
                thresholds = thresholds.to(weight.device, weight.dtype)
                flat = weight.detach().flatten()
                self._members = torch.bucketize(flat, thresholds, out_int32=True).to(torch.uint8)
                self._bits = bits
                self._centroids = None
            self._members = self._members.to(weight.device)
            if self._centroids is None or self._version != weight._version:
                self._centroids = self._means(weight)[0]
                self._version = weight._version
        return self._members, self._centroids

    def _move(self, weight: Tensor) -> None:
        before = None if self._centroids is None else self._centroids.to(weight.device)
        self._centroids, counts = self._means(weight)
        if self.centroid_update == "deep-compression" and before is not None:
            # the members were at their centroid (on the mean), so this is the sum of their steps
            self._centroids = before + (self._centroids - before) * counts

    def _means(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and size of every cluster, float64; an empty one keeps its centroid."""
        assert self._members is not None
        known = torch.as_tensor(self.codebooks[self._bits - 1].centroids, device=weight.device)
        index = self._members.int()
        values = weight.detach().flatten().double()
        counts = torch.bincount(index, minlength=known.numel())
        sums = torch.bincount(index, weights=values, minlength=known.numel())
        return torch.where(counts > 0, sums / counts.clamp(min=1), known), counts


def _gather(centroids: Tensor, members: Tensor, weight: Tensor) -> Tensor:
    shared = centroids.to(weight.dtype).index_select(0, members.int()).view(weight.shape)
    return shared.contiguous(memory_format=_format(weight))


def _format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


class _Share(torch.autograd.Function):
    """The centroid of every weight; gradient 1 everywhere."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, centroids: Tensor, members: Tensor) -> Tensor:
        return _gather(centroids, members, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return grads[0], None, None
