"""Which arithmetic measures the accuracy: floating point, or integer kernels where they serve."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from haq_env.errors import unknown_name
from haq_env.evaluation.recipe import INFERENCES
from haq_env.evaluation.timing import shortest_time
from haq_env.policy import uniform
from haq_env.quantization.integer import IntegerNetwork, IntegerProgram, Unsupported
from haq_env.quantization.network import QuantizedNetwork

# Of the trial batch at 8 bits: less agreement of the predictions, or a larger relative distance of
# the logits, is no rounding, but a mistake.
AGREEMENT = 0.98
DISTANCE = 0.2
ROUNDS = 3  # of the trial


class InferenceChoice:
    """The choice between the float and the integer path, made once for a network.

    ``"auto"`` takes the path that measures a policy faster, the conversion to integers included,
    as the trial batch tells; ``"int8"`` takes the integer path wherever it exists. Integer sums are
    exact and float sums are not, so the two can disagree on single images: answers of different
    paths are not to be mixed.

    Args:
        network: the network that `serving` converts; its pretrained weights are restored and its
            bits are left changed if integers are tried.
        inference: ``"auto"``, ``"float"`` or ``"int8"``.
        batch: normalised images [N, C, H, W] for the trial, as many as a batch of measuring.
        images: how many images a policy is measured on.

    Attributes:
        name: the path that was chosen, ``"float"`` or ``"int8"``.
        note: why floating point serves although integers were allowed, one line; else empty.

    Raises:
        InputError: an unknown path.
    """

    def __init__(
        self, network: QuantizedNetwork, inference: str, batch: Tensor, images: int
    ) -> None:
        if inference not in INFERENCES:
            raise unknown_name("inference", inference, INFERENCES)
        self.name: Literal["float", "int8"] = "float"
        self.note = ""
        self._network = network
        self._program: IntegerProgram | None = None
        if inference == "float":
            return
        try:
            program = IntegerProgram.of(network)
            seconds = _try(network, program, batch, images / len(batch))
        except Unsupported as reason:
            self.note = f"float inference: {reason}"
            return
        if inference == "auto" and seconds["float"] <= seconds["int8"]:
            self.note = "float inference: faster than integer kernels here"
            return
        self.name = "int8"
        self._program = program

    def serving(self) -> tuple[QuantizedNetwork | IntegerNetwork, str]:
        """Return what measures the network's present policy and weights, and a note.

        The network is put into evaluation mode. The note says why floating point serves although
        integers were allowed; it is empty where the policy is float itself.
        """
        self._network.eval()
        if self._program is None or self._network.bits is None:
            return self._network, self.note if self._network.bits is not None else ""
        try:
            return self._program.convert(), ""
        except Unsupported as reason:
            return self._network, f"float inference: {reason}"


def _try(
    network: QuantizedNetwork, program: IntegerProgram, batch: Tensor, batches: float
) -> dict[str, float]:
    """Return the seconds that both paths take for a policy, at 8 bits.

    Args:
        network: see `InferenceChoice`.
        program: the network's.
        batch: of images.
        batches: how many of them measure a policy, not negative.

    Raises:
        Unsupported: the integer path fails, or computes something else.
    """
    network.eval()
    network.restore()
    network.set_policy(uniform(len(network.layers), 8, 8))
    integers = program.convert()
    with torch.no_grad():
        expected = network(batch)
        try:
            found = integers(batch)
        except (RuntimeError, TypeError, AttributeError, IndexError) as error:
            raise Unsupported(f"integer kernels fail ({type(error).__name__})") from error
        distance = float((found - expected).norm() / expected.norm())
        if not distance <= DISTANCE:
            raise Unsupported(
                f"integer kernels give other logits (relative distance {distance:.2g})"
            )
        agreement = float((expected.argmax(dim=1) == found.argmax(dim=1)).float().mean())
        if agreement < AGREEMENT:
            raise Unsupported(f"integer kernels agree in only {agreement:.1%} of the predictions")
        # every policy is converted anew, which a small network on few images does not regain
        return {
            "float": batches * shortest_time(lambda: network(batch), ROUNDS),
            "int8": batches * shortest_time(lambda: integers(batch), ROUNDS)
            + shortest_time(program.convert, ROUNDS),
        }
