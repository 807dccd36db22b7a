"""Policies that begin alike share their beginnings: the network is run from where they part.

Without finetuning, what a layer receives follows from the bits of the layers before it and from
nothing else. That holds for the recalibration of batch norm too: its statistics are those of what
arrives, and in that pass they are not used before they are known. So the images can be kept as
they are half way through the network, and a policy that differs only further on starts from there.
The arithmetic that is left is the same, operation by operation, and so is every bit of the answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain as joined
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from haq_env.evaluation.chain import Chain, NotAChain, Tail
from haq_env.policy import Bits
from haq_env.quantization.batchnorm import BATCH, recalibrate_batchnorm, statistics
from haq_env.quantization.network import QuantizedNetwork

if TYPE_CHECKING:
    from haq_env.evaluation.finetune import Images
    from haq_env.evaluation.stopping import EarlyStopping, Score

_SHARE = 4  # one cut may take this part of the memory, so that some policies fit side by side
_ASKED = 1 << 18  # beginnings that are remembered, without their images; 100 bytes each
_PROBE = 4  # images; what differs on them differs, and more would cost time at every start

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
Beginning = tuple[int, bytes]  # number of a cut, and the bits that decide what is there


class _Kept(NamedTuple):
    """The images at one cut, under one policy up to there.

    Attributes:
        train: batches for the recalibration; empty where no batch norm follows.
        val: batches for the measurement.
        stats: running means and variances of all batch-norm layers before the cut.
    """

    train: list[Tensor]
    val: list[Tensor]
    stats: list[Tensor]

    def size(self) -> int:
        """Return the bytes it holds on to."""
        return sum(tensor.untyped_storage().nbytes() for tensor in joined(*self))


class _Holding:
    """What one policy leaves at one cut, let go of as soon as it is more than may be kept."""

    def __init__(self, cuts: set[int], most: int) -> None:
        self.cuts = cuts  # one at most; empty when it was too much
        self.train: list[Tensor] = []
        self.val: list[Tensor] = []
        self._most, self._size = most, 0

    def add(self, to: list[Tensor], passed: Mapping[int, Tensor]) -> None:
        """Hold on to one more batch."""
        to += passed.values()
        self._size += sum(tensor.untyped_storage().nbytes() for tensor in passed.values())
        if self._size > self._most:
            self.cuts.clear()
            self.train.clear()
            self.val.clear()


class PrefixReuse:
    """Recalibrates and measures a network, starting from what earlier policies have in common.

    A beginning is kept when it is asked for the second time, and only the longest one of each
    policy: memory that is kept has to be fetched anew, which policies without anything in common
    should not pay for.

    Args:
        chain: the network.
        train: batches of images that batch norm is recalibrated on.
        val: gives batches of images and labels to be measured on, the same ones every time.
        limit: bytes; what was not used for longest is dropped beyond it.

    Attributes:
        size: bytes that are kept.
        parts_run: parts that were run, over all policies.
        parts_asked: parts that would have been run without this.
    """

    def __init__(self, chain: Chain, train: Sequence[Tensor], val: Batches, limit: int) -> None:
        self.size = 0
        self.parts_run = self.parts_asked = 0
        self._limit = limit
        self._chain, self._train, self._val = chain, train, val
        self._kept: OrderedDict[Beginning, _Kept] = OrderedDict()
        self._asked: set[Beginning] = set()
        self._too_large: set[int] = set()  # cuts; one that takes all memory drives out the others

    @classmethod
    def of(
        cls,
        network: QuantizedNetwork,
        images: Mapping[str, Images],
        bn_images: int,
        stopping: EarlyStopping | None,
        limit: int,
    ) -> PrefixReuse:
        """Prepare a network and the splits ``"train"`` and ``"val"``; raises `NotAChain`."""
        train, val = images["train"].batch(slice(0, bn_images)), images["val"]
        chain = Chain(network, train[:_PROBE])
        # cut as `recalibrate_batchnorm` does, and measured as `accuracy` does
        batches = train.tensor_split(-(-len(train) // BATCH))
        shown = partial(val.batches, BATCH) if stopping is None else partial(stopping.batches, val)
        return cls(chain, batches, shown, limit)

    def expect(self, policies: Iterable[Bits]) -> None:
        """Tell of policies to come, so that what they have in common is kept at once."""
        seen: set[Beginning] = set()
        for bits in policies:
            mine = self._beginnings(bits)
            self._ask(one for one in mine if one in seen)
            seen.update(mine)

    def measure(self, bits: Bits, score: Score) -> None:
        """Recalibrate and measure a policy that the network has been set to.

        Args:
            bits: the policy, int64 [L, 2].
            score: where right answers are counted; it may stop the measurement.
        """
        chain = self._chain
        keys = self._beginnings(bits)
        first = max((cut + 1 for cut, key in enumerate(keys) if key in self._kept), default=0)
        known = max((cut for cut, key in enumerate(keys) if key in self._asked), default=-1)
        holding = _Holding(
            {known} if known >= first and known not in self._too_large else set(),
            self._limit // _SHARE,
        )
        self._ask(keys)
        self.parts_run += len(chain.parts) - first
        self.parts_asked += len(chain.parts)
        found = None
        if first:
            found = self._kept[keys[first - 1]]
            self._kept.move_to_end(keys[first - 1])
            _load([norm for norms in chain.norms[:first] for norm in norms], found.stats)
        chain.network.eval()
        with torch.no_grad():
            inputs = self._train if found is None else found.train
            tail = Tail(chain, first, inputs, holding.cuts, partial(holding.add, holding.train))
            recalibrate_batchnorm(tail, torch.arange(len(self._train)), 1)
            for number, (images, labels) in enumerate(self._val()):
                value = chain.start(images) if found is None else found.val[number]
                logits, passed = chain.run_keeping(value, first, holding.cuts)
                holding.add(holding.val, passed)
                if score(int((logits.argmax(dim=1) == labels).sum()), len(labels)):
                    return
        if known >= first and not holding.cuts:
            self._too_large.add(known)
        for cut in holding.cuts:
            self._keep(keys[cut], holding.train, holding.val)

    def _beginnings(self, bits: Bits) -> list[Beginning]:
        rows = self._chain.rows[:-1]  # the last part has no cut behind it
        return [(cut, bits[rows].astype(np.uint8).tobytes()) for cut, rows in enumerate(rows)]

    def _ask(self, beginnings: Iterable[Beginning]) -> None:
        if len(self._asked) > _ASKED:  # a long search; what matters soon is asked for again
            self._asked.clear()
        self._asked.update(beginnings)

    def _keep(self, key: Beginning, train: list[Tensor], val: list[Tensor]) -> None:
        cut = key[0]
        norms = self._chain.norms
        stats = [s.clone() for part in norms[: cut + 1] for norm in part for s in statistics(norm)]
        kept = _Kept(train if any(norms[cut + 1 :]) else [], val, stats)
        size = kept.size()
        if size > self._limit // _SHARE:
            self._too_large.add(cut)
            return
        self._kept[key] = kept
        self.size += size
        while self.size > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self.size -= dropped.size()


class FloatSweep:
    """Runs a float network again and again with one layer changed, from where that layer starts.

    Args:
        network: in float and evaluation mode, with its pretrained weights; so it is left.
        batches: of images, [N, ...] each.
    """

    def __init__(self, network: QuantizedNetwork, batches: Sequence[Tensor]) -> None:
        self._network, self._batches = network, batches
        try:
            self._chain: Chain | None = Chain(network, batches[0][:_PROBE])
        except NotAChain:
            self._chain = None
        network.restore()
        network.float_mode()
        self._at, self._values = 0, self._beginning()

    def before(self, layer: int) -> None:
        """Go to where a layer starts, a row of policies; all layers must be in float mode."""
        if self._chain is None:
            return
        part = next(at for at, rows in enumerate(self._chain.rows) if layer in rows)
        if part < self._at:
            self._at, self._values = 0, self._beginning()
        with torch.no_grad():
            for one in self._chain.parts[self._at : part]:
                self._values = [one(value) for value in self._values]
        self._at = part

    def logits(self) -> list[Tensor]:
        """Return what the network answers to each batch now."""
        if self._chain is None:
            return [self._network(batch) for batch in self._batches]
        nothing: set[int] = set()
        return [self._chain.run_keeping(value, self._at, nothing)[0] for value in self._values]

    def _beginning(self) -> list[Tensor]:
        return [] if self._chain is None else [self._chain.start(one) for one in self._batches]


def _load(norms: list[_BatchNorm], stats: list[Tensor]) -> None:
    targets = [one for norm in norms for one in statistics(norm)]
    for target, kept in zip(targets, stats, strict=True):
        target.copy_(kept)
