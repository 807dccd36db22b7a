"""Several policies at once on one device: copies of a network that take the same steps together.

A small network keeps a GPU waiting for the host, which launches a thousand small kernels for every
step. Here a step of all copies is recorded once for each group of policies, because the bits are
numbers in its kernels, and then repeated for every batch of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from haq_env.evaluation.capture import Recorder
from haq_env.evaluation.descent import Descent, descend
from haq_env.evaluation.finetune import Images, batches_of, dropout_seeded, rate_of
from haq_env.evaluation.recipe import Recipe
from haq_env.policy import Bits
from haq_env.quantization.batchnorm import BATCH, enough_values
from haq_env.quantization.network import QuantizedNetwork


class Lane:
    """A copy of the network with what it is finetuned and measured by.

    Args:
        network: what to copy.
        lanes: the recipe and the images, and the batches that are laid out in turn.

    Attributes:
        network: the copy.
        descent: its optimizer; None without finetuning.
        right: right answers so far, an int64 number on the device.
    """

    def __init__(self, network: QuantizedNetwork, lanes: Lanes) -> None:
        self.network = network.clone()
        self.descent: Descent | None = None
        if lanes.recipe.steps:
            self.descent = Descent(self.network, lanes.train, lanes.recipe)
        self._val = lanes.val
        self.right = torch.zeros((), dtype=torch.int64, device=self._val.labels.device)
        self._step_index, self._show_index = lanes.step_index, lanes.show_index

    def step(self) -> None:
        """Push by the training images that are laid out."""
        assert self.descent is not None
        self.descent.push(self._step_index)

    def show(self) -> None:
        """Count right answers to the held-out images that are laid out."""
        self.count(self._show_index)

    def count(self, index: Tensor) -> None:
        """Count right answers to held-out images, int64 [n]."""
        logits = self.network(self._val.batch(index))
        self.right += (logits.argmax(dim=1) == self._val.labels[index]).sum()


class Lanes:
    """Evaluates policies side by side as `Bench.measure` does one by one.

    What is recorded are the finetuning's step and the counting of right answers for a batch. The
    rest is as ever: a recording that is used once saves nothing, and that is what the re-estimation
    of batch norm would be, each batch of which weighs otherwise.

    It is for quantizers that have nothing to do after a step.

    Args:
        network: what to copy; it is not changed.
        images: the splits ``"train"`` and ``"val"``.
        recipe: the finetuning.
        seed: of the order of training images.
        recorder: what repeats a step.

    Attributes:
        most: how many policies fit side by side; 1 until somebody knows better.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        images: Mapping[str, Images],
        recipe: Recipe,
        seed: int,
        recorder: Recorder,
    ) -> None:
        self.most = 1
        self.recipe, self.train, self.val = recipe, images["train"], images["val"]
        self._network, self._seed, self._recorder = network, seed, recorder
        self._device = self.val.labels.device
        self._lanes: list[Lane] = []
        batches = batches_of(len(self.train), recipe, seed)
        self._batches = [index.to(self._device) for index in batches]
        self._numbers = torch.arange(len(self.val), device=self._device)
        # recordings read these; what is in them changes between repetitions
        self.step_index = torch.zeros(recipe.batch_size, dtype=torch.int64, device=self._device)
        self.show_index = torch.zeros(BATCH, dtype=torch.int64, device=self._device)

    @property
    def networks(self) -> list[QuantizedNetwork]:
        """The copies, as the latest policies have left them."""
        return [lane.network for lane in self._lanes]

    def measure(self, policies: Sequence[Bits], steps: int | None = None) -> list[float]:
        """Return top-1 on the held-out images, in percent.

        Args:
            policies: at most `most`, each int64 [L, 2].
            steps: of the finetuning, at most the recipe's; None takes all of them.

        Raises:
            InputError: bits that the quantizer does not define, or batch norm that cannot be
                trained.
            RuntimeError: a step cannot be recorded.
        """
        recipe = self.recipe if steps is None else replace(self.recipe, steps=steps)
        lanes = self._prepared(policies)
        if recipe.steps:
            self._finetune(lanes, recipe)
        for lane in lanes:
            network = lane.network
            if not recipe.steps:
                network.restore()
            # Repetitions run no Python that would have told. And so the copies never use the cache
            # of pretrained weights, which could drop some and fill itself from a graph's memory.
            network.weights_changed()
            network.recalibrate_batchnorm(self.train.batch(slice(0, recipe.bn_images)))
        return self._count(lanes)

    def draws(self, bits: Bits) -> bool:
        """Tell whether a step draws random numbers under a policy, int64 [L, 2]."""
        (lane,) = self._prepared([bits])
        if lane.descent is None:
            return False
        with dropout_seeded(self._seed, self._device), enough_values():
            before = _generators(self._device)
            lane.step()
            return before != _generators(self._device)

    def _prepared(self, policies: Sequence[Bits]) -> list[Lane]:
        """Return a lane for each policy, in training mode."""
        while len(self._lanes) < len(policies):
            self._lanes.append(Lane(self._network, self))
        lanes = self._lanes[: len(policies)]
        for lane, bits in zip(lanes, policies, strict=True):
            lane.network.set_policy(bits)
            lane.network.train()
        return lanes

    def _finetune(self, lanes: Sequence[Lane], recipe: Recipe) -> None:
        descents = [lane.descent for lane in lanes if lane.descent is not None]
        with enough_values():
            repeat = self._recorder.record([lane.step for lane in lanes])
            for lane, descent in zip(lanes, descents, strict=True):
                lane.network.restore()
                descent.reset()
            for step in range(recipe.steps):
                self.step_index.copy_(self._batches[step])
                repeat()
                descend(descents, rate_of(recipe, step))
        for descent in descents:
            descent.release()

    @torch.no_grad()
    def _count(self, lanes: Sequence[Lane]) -> list[float]:
        full = len(self._numbers) // BATCH * BATCH
        for lane in lanes:
            lane.network.eval()
            # what is recorded must find them: else it would leave them in the memory of a graph
            lane.network.quantize_weights()
        repeat = self._recorder.record([lane.show for lane in lanes]) if full else None
        for lane in lanes:
            lane.right.zero_()
        if repeat is not None:
            for index in torch.split(self._numbers[:full], BATCH):
                self.show_index.copy_(index)
                repeat()
        for lane in lanes:
            if full < len(self._numbers):
                lane.count(self._numbers[full:])
        right = torch.stack([lane.right for lane in lanes]).tolist()
        return [100.0 * each / len(self._numbers) for each in right]


def _generators(device: torch.device) -> list[bytes]:
    """Return the states of the generators that a network on a device may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [state.numpy().tobytes() for state in states]
