"""Giving up on a candidate while it is measured, once it can hardly be the best any more.

A policy that gets every second image wrong need not be shown all of them when another one got 95
percent right. This is for searching only: the accuracy of a policy that was given up is an estimate
from a part of the images, and which ones are given up depends on what was measured before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from haq_env.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from haq_env.evaluation.finetune import Images, Trainable

CHUNK = 32  # images; fewer in a batch cost more each than what stopping earlier saves


@dataclass(frozen=True)
class EarlyStopping:
    """When to stop measuring a candidate.

    After every chunk of images the upper confidence bound of the accuracy on all of them is
    compared with the best accuracy so far.

    Attributes:
        delta: the chance, in (0, 0.5], that a candidate is given up that would have been at least
            as good as the best; over all chunks of one measurement together.
        chunk: images between two looks.
    """

    delta: float = 0.05
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 0.5:
            raise InputError(f"early stopping: delta must be in (0, 0.5], not {self.delta}.")
        if self.chunk < 1:
            raise InputError(f"early stopping: a chunk needs an image or more, not {self.chunk}.")

    def batches(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk all images in chunks, in an order that is shuffled and always the same."""
        import torch

        # a split may be sorted by class, and then its beginning says nothing about the rest
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
        for index in torch.split(order.to(images.labels.device), self.chunk):
            yield images.batch(index), images.labels[index]


class Score:
    """Right answers so far, and whether to go on.

    Args:
        images: how many there are in all.
        stopping: when to stop; None never does.
        best: the best accuracy so far, in percent; nothing is worse than minus infinity.

    Attributes:
        right: right answers.
        seen: images shown.
        stopped: whether this was given up before the last image.
        stopping: the rule.
    """

    def __init__(
        self, images: int, stopping: EarlyStopping | None = None, best: float = -math.inf
    ) -> None:
        self.right = self.seen = 0
        self.stopped = False
        self.stopping = stopping
        self._images, self._best = images, best
        # the looks share delta equally; that no look is at the last image is on the safe side
        looks = 0 if stopping is None else -(-images // stopping.chunk)
        self._delta = None if stopping is None else stopping.delta / looks

    def __call__(self, right: int, seen: int) -> bool:
        """Count a batch; True says to stop."""
        self.right += right
        self.seen += seen
        if self._delta is not None and self.seen < self._images:
            highest = upper_bound(self.right, self.seen, self._images, self._delta)
            self.stopped = 100 * highest < self._best
        return self.stopped

    @property
    def accuracy(self) -> float:
        """Top-1 in percent on what was shown."""
        return 100.0 * self.right / self.seen


def count(network: Trainable, batches: Iterable[tuple[Tensor, Tensor]], score: Score) -> None:
    """Show a network batches of images and labels until the score has had enough."""
    import torch

    network.eval()
    with torch.no_grad():
        for images, labels in batches:
            if score(int((network(images).argmax(dim=1) == labels).sum()), len(labels)):
                return


def upper_bound(right: int, seen: int, images: int, delta: float) -> float:
    """Return an upper bound of the share of right answers on all images.

    It is Wilson's (1927), one-sided, for a sample without replacement: the fewer images are left,
    the less can change. What all remaining answers being right would give is never exceeded.

    Args:
        right: right answers on the images seen.
        seen: at least 1.
        images: how many there are in all, at least as many.
        delta: the chance that the share lies above the bound.
    """
    certain = (right + images - seen) / images
    if seen == images:
        return certain
    share = right / seen
    size = seen * (images - 1) / (images - seen)  # what it is worth of a sample with replacement
    z = NormalDist().inv_cdf(1 - delta)
    middle = share + z * z / (2 * size)
    spread = z * math.sqrt(share * (1 - share) / size + (z / (2 * size)) ** 2)
    return min(certain, (middle + spread) / (1 + z * z / size))
