"""Whether CUDA graphs evaluate policies side by side: tried once, against one by one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from haq_env.errors import typed_line, unknown_name
from haq_env.evaluation.capture import CudaGraphs, Recorder
from haq_env.evaluation.lanes import Lanes
from haq_env.evaluation.recipe import GRAPHS, Recipe
from haq_env.evaluation.timing import shortest_time
from haq_env.policy import MAX_BITS, MIN_BITS, Bits
from haq_env.quantization.linear import LinearQuantizer
from haq_env.quantization.lsq import LSQQuantizer
from haq_env.quantization.network import QuantizedNetwork

if TYPE_CHECKING:
    from haq_env.evaluation.bench import Bench

# After a few steps the weights must lie where one by one puts them, up to this part of the way that
# they went, or twice the distance between two runs of one by one: some kernels add in any order.
COMPARED = 3  # steps: the third one has momentum, another rate and another batch
DISTANCE = 1e-2
NOISE = 0.05  # between two runs of one by one; with more than that nothing can be compared
POINTS = 2.0  # of accuracy
# Graphs cost most at the beginning: what is faster with so few steps is so with more.
TIMED = 10
ROUNDS = 2


class GraphChoice:
    """The choice between CUDA graphs and one by one, made once.

    Graphs serve where they give the answers of one by one and take less time for a single policy;
    several go side by side if that takes less time still. Then they measure all policies: their
    kernels may add in another order, so answers of both are not to be mixed.

    Args:
        bench: what is measured; its network is left with other bits and weights if graphs are
            tried.
        graphs: ``"auto"``; ``"on"`` to take them although they are slower; or ``"off"``.
        recipe: the finetuning.
        seed: of the order of training images.

    Attributes:
        note: why graphs do not serve, one line; empty where they do, and where nobody would
            expect them.

    Raises:
        InputError: another word, or what evaluating one by one raises.
    """

    def __init__(
        self,
        bench: Bench,
        graphs: str,
        recipe: Recipe,
        seed: int,
    ) -> None:
        if graphs not in GRAPHS:
            raise unknown_name("graphs", graphs, GRAPHS)
        self._lanes: Lanes | None = None
        self.note = ""
        recorder = None if graphs == "off" else recorder_for(bench.device)
        if recorder is None:
            reason = f"the device is {bench.device.type!r}" if graphs == "on" else ""
        else:
            reason = _obstacle(bench, recipe)
            if not reason:
                self._lanes, reason = _try(bench, recipe, seed, recorder, forced=graphs == "on")
        if reason:
            self.note = f"no CUDA graphs: {reason}"
            if graphs == "on":
                warnings.warn(self.note, RuntimeWarning, stacklevel=2)

    @property
    def most(self) -> int:
        """How many policies are measured side by side; 0 where graphs do not serve."""
        return 0 if self._lanes is None else self._lanes.most

    def measure(self, policies: Sequence[Bits]) -> list[float] | None:
        """Measure policies side by side.

        Args:
            policies: not more than `most`, each int64 [L, 2].

        Returns:
            Top-1 on the held-out images, in percent; None where graphs do not serve, or no
            longer do.
        """
        if self._lanes is None:
            return None
        try:
            return self._lanes.measure(policies)
        except RuntimeError as error:  # others may have taken the memory meanwhile
            self._lanes, self.note = None, f"no CUDA graphs: {_failure(error)}"
            return None


def _try(
    bench: Bench, recipe: Recipe, seed: int, recorder: Recorder, forced: bool
) -> tuple[Lanes | None, str]:
    """Return lanes that have shown what they can, or None and why they do not serve."""
    trial = _Trial(bench, recipe, seed)  # it raises what one by one raises
    try:
        lanes = Lanes(bench.network, bench.images, recipe, seed, recorder)
        reason = trial.difference(lanes, recorder) or trial.slowness(lanes, forced)
    except Exception as error:  # whatever a network's own code raises under a capture
        return None, _failure(error)
    return (None if reason else lanes), reason


class _Trial:
    """A comparison of lanes with one by one.

    Args:
        bench: what measures one by one.
        recipe: the finetuning.
        seed: of the order of training images.
    """

    def __init__(self, bench: Bench, recipe: Recipe, seed: int) -> None:
        self._bench, self._recipe, self._seed = bench, recipe, seed
        self._policies = trial_policies(bench.network)
        bench.network.restore()
        self._start = _state(bench.network)
        self._expected = [self._one(bits) for bits in self._policies]
        self._again = self._one(self._policies[0])

    def difference(self, lanes: Lanes, recorder: Recorder) -> str:
        """Say how lanes answer otherwise, or nothing; they know how many fit then."""
        before = recorder.held()
        if lanes.draws(self._policies[0]):
            return "a step draws random numbers"
        noise = self._distance(self._again, self._expected[0])
        if not noise <= NOISE:
            return f"one by one differs from itself (relative distance {noise:.2g})"
        found = self._side_by_side(lanes, [0])
        lanes.most = recorder.lanes(before)
        # the other way round: whatever stays of a lane's former policy would show
        found += self._side_by_side(lanes, [1, 0] if lanes.most > 1 else [1])
        for at, outcome in zip([0, 1, 0], found, strict=False):
            distance = self._distance(outcome, self._expected[at])
            if not distance <= max(DISTANCE, 2 * noise):
                return f"they give other weights (relative distance {distance:.2g})"
            points = abs(outcome.accuracy - self._expected[at].accuracy)
            if not points <= POINTS:
                return f"they give another accuracy ({points:.2g} points)"
        return ""

    def slowness(self, lanes: Lanes, forced: bool) -> str:
        """Say that lanes are slower, or nothing; they know how many are fastest then."""
        steps = min(self._recipe.steps, TIMED)
        bits = self._policies[0]
        alone = _seconds(lambda: lanes.measure([bits], steps))
        if not forced:
            recipe = replace(self._recipe, steps=steps)
            one = _seconds(lambda: self._bench.measure(bits, recipe, self._seed, ("val",)))
            if one <= alone:
                return "one by one is faster here"
        group = list(islice(cycle(self._policies), lanes.most))
        if _seconds(lambda: lanes.measure(group, steps)) > lanes.most * alone:
            lanes.most = 1
        return ""

    def _one(self, bits: Bits) -> _Outcome:
        recipe = replace(self._recipe, steps=min(self._recipe.steps, COMPARED))
        accuracy = self._bench.measure(bits, recipe, self._seed, ("val",))["val"]
        return _Outcome(accuracy, _state(self._bench.network))

    def _side_by_side(self, lanes: Lanes, which: list[int]) -> list[_Outcome]:
        policies = [self._policies[at] for at in which]
        answers = lanes.measure(policies, min(self._recipe.steps, COMPARED))
        states = [_state(network) for network in lanes.networks[: len(which)]]
        return [_Outcome(*each) for each in zip(answers, states, strict=True)]

    def _distance(self, found: _Outcome, expected: _Outcome) -> float:
        """Return the distance as a part of the way from the pretrained state, summed over kinds."""
        parts = zip(found.state, expected.state, self._start, strict=True)
        # a sum, because the largest of some numbers may overlook one that is none
        return sum(_ratio(left - right, right - start) for left, right, start in parts)


class _Outcome(NamedTuple):
    """An accuracy in percent, and `_state`."""

    accuracy: float
    state: tuple[Tensor, Tensor]


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what repeats work on a device faster than the host would launch it again."""
    return CudaGraphs(device) if device.type == "cuda" else None


def trial_policies(network: QuantizedNetwork) -> list[Bits]:
    """Return two policies of all widths, which are different in every layer; int64 [L, 2] each."""
    probes = np.stack([network.probe(width) for width in range(MIN_BITS, MAX_BITS + 1)])
    rows = np.arange(len(network.layers))
    return [probes[(rows + first) % len(probes), rows] for first in (3, 0)]


def _obstacle(bench: Bench, recipe: Recipe) -> str:
    """Say why there is nothing to try, or nothing."""
    if bench.stopping is not None:
        return "early stopping looks at every chunk of images"
    if bench.inference.name != "float":
        return "accuracies are measured on integers"
    if bench.prefixes(recipe) is not None:
        return "policies that begin alike share more"
    quantizers = {type(layer.slot.quantizer) for layer in bench.network.quantized_layers}
    if not quantizers <= {LinearQuantizer, LSQQuantizer}:
        return f"quantizer {bench.network.quantizer!r} may have work to do after a step"
    return ""


def _state(network: QuantizedNetwork) -> tuple[Tensor, Tensor]:
    """Return all parameters and all statistics, flat; copies."""
    kinds = (network.parameters(), network.buffers())
    parts = [[one.detach().flatten() for one in kind if one.is_floating_point()] for kind in kinds]
    nothing = [torch.zeros(0)]
    first, second = (torch.cat(kind or nothing) for kind in parts)
    return first, second


def _ratio(above: Tensor, below: Tensor) -> float:
    top, bottom = float(above.norm()), float(below.norm())
    return top / bottom if bottom else 0.0 if not top else math.inf


def _seconds(run: Callable[[], object]) -> float:
    """Return the time of what ends with an answer on the host."""
    return shortest_time(run, ROUNDS)


def _failure(error: Exception) -> str:
    return f"they fail ({typed_line(error)[:150]})"
