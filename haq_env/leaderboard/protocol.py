"""What the leaderboard runs: suites of tracks, seeds, and the evaluations after which it looks.

The rules in words, with their reasons, are in ``benchmarks/LEADERBOARD.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from haq_env.errors import InputError, unknown_name
from haq_env.policy import Bits, from_digits

if TYPE_CHECKING:
    from haq_env.task import Task

VERSION = 1  # of the protocol: raised when numbers of two versions cannot be compared
SEEDS = range(10)  # of published runs
TUNING_SEEDS = 100  # settings are tuned on seeds from here on only
FEWEST_SEEDS = 5  # that a place takes, where anybody has run so many
MOST_EVALUATIONS = 1000  # of a run
FRESH_SEEDS = (1000, 1001, 1002)  # of the finetuning that scores a policy on test images


@dataclass(frozen=True)
class Suite:
    """Tracks that are ranked together, in a table of their own.

    Attributes:
        name: what people call it.
        checkpoints: evaluations after which a run's best policy counts; a whole run has as many
            as the last one.
        folder: where its table is, inside the leaderboard's folder.
    """

    name: str
    checkpoints: tuple[int, ...]
    folder: str = ""

    def __str__(self) -> str:
        return self.name


SEARCH = Suite("search", (50, 100, 200, 400))
# after the first policy that is not the uniform one: what a method knows before it searches
TRANSFER = Suite("transfer", (2, 10, 50), "transfer")
# an evaluation takes ten times as long, so runs that are shorter count as well
CIFAR10 = Suite("cifar10", (10, 50, 100, 200), "cifar10")
SUITES: Mapping[str, Suite] = MappingProxyType(
    {suite.name: suite for suite in (SEARCH, TRANSFER, CIFAR10)}
)


@dataclass(frozen=True)
class Track:
    """One problem of the leaderboard.

    Attributes:
        name: what people call it, for example ``"digits-bismo-edge-w3a2"``.
        settings: arguments of `haq_env.make.make_task`, without any path of a machine.
        source: the track on which a method may have learned before; None outside `TRANSFER`.
        suite: what it is ranked in.
        images: `haq_env.data.Dataset.digest` of its images, where they are not in the package.
    """

    name: str
    settings: Mapping[str, Any] = field(hash=False)
    source: Track | None = None
    suite: Suite = SEARCH
    images: str = ""

    def task(self, **runtime: Any) -> Task:
        """Build the problem; ``runtime`` adds what decides no outcome: cache, workers, device."""
        from haq_env.make import make_task

        return make_task(**{**self.settings, **runtime})

    def check_images(self) -> None:
        """See that the images on this machine are those that the track is about.

        Costs need none; whoever measures accuracies calls it before.

        Raises:
            InputError: they are others, or cannot be had.
        """
        if not self.images:
            return
        from haq_env.data import load_dataset
        from haq_env.data.store import cache_folder

        data = load_dataset(self.settings["dataset"])
        if data.digest() != self.images:
            raise InputError(
                f"track {self.name} is about the original images of {data.name}, and those in "
                f"{cache_folder() / data.name} are others{f' ({data.note})' if data.note else ''}: "
                "put cifar-10-batches-py or cifar-10-batches-bin there, or nothing, and they are "
                f"downloaded. If they are there, remove {cache_folder() / 'decoded'}."
            )

    def check_kernels(self, task: Task) -> None:
        """See that accuracies are measured with the arithmetic that the track is about.

        Args:
            task: the track's, as it was built here; its network is loaded.

        Raises:
            InputError: it is about integer kernels, and floating point serves in their place.
        """
        if self.settings.get("inference") != "int8" or not task.is_trained:
            return
        inference = task.trained().bench.inference
        if inference.name != "int8":
            raise InputError(
                f"track {self.name} is about accuracies on integer kernels, and on this machine "
                f"there is only {inference.note}."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # a mapping proxy cannot be sent to another process
        return Track, (self.name, dict(self.settings), self.source, self.suite, self.images)


@dataclass(frozen=True)
class Cell:
    """One run: a method on a track with a seed.

    Attributes:
        track: name of a track.
        method: name of a search method, see `haq_env.agents.methods`.
        seed: of the method; the finetuning inside every evaluation has the track's own.
        evaluations: policies that the run may measure, the uniform policy included.
    """

    track: str
    method: str
    seed: int
    evaluations: int

    def __str__(self) -> str:
        return f"{self.method} on {self.track}, seed {self.seed}, {self.evaluations} evaluations"


@dataclass(frozen=True)
class Improvement:
    """A policy that was better than all before it in its run.

    Attributes:
        evaluation: which evaluation found it, from 1.
        w_bits: a digit for each layer ("83428").
        a_bits: likewise.
        accuracy: top-1 on held-out images inside the search, in percent.
    """

    evaluation: int
    w_bits: str
    a_bits: str
    accuracy: float

    @property
    def bits(self) -> Bits:
        """The policy, int64 [L, 2].

        Raises:
            InputError: it is not one digit from 1 to 8 for both sides of each layer.
        """
        return from_digits(self.w_bits, self.a_bits)


@dataclass(frozen=True)
class Outcome:
    """What came out of a finished run.

    Attributes:
        cell: the run.
        steps: the improvements, the first one is the uniform policy at evaluation 1.
        evaluations: how many policies were measured; fewer than allowed if the method ended.
        charge: what was computed before the first evaluation, in evaluations; what was learned
            on a track's source is a part of it.
        repeats: evaluations of a policy that this run had measured before.
        seconds: outside of the evaluations that are counted.
        wall: in all; evaluations that the cache knew took none. 0 where nobody has noted it.
        arithmetic: of the machine that it ran on, see `haq_env.leaderboard.arithmetic`; empty
            where nobody has noted it.
    """

    cell: Cell
    steps: tuple[Improvement, ...]
    evaluations: int
    charge: float = 0.0
    repeats: int = 0
    seconds: float = 0.0
    wall: float = field(default=0.0, compare=False)  # a replay takes another time
    arithmetic: str = ""


# Of every track: all that decides an answer, so that no default can change what a name means.
_DIGITS: Mapping[str, Any] = MappingProxyType(
    {"network": "mobilenet_v1", "dataset": "digits", "evaluator": "finetune", "seed": 0}
    | {"bits": (2, 8), "quantizer": "linear", "clip": "mse", "fill_up": True}
    | {"inference": "float", "metric": "latency"}
)
# Integer kernels: 5,000 images in float would take most of an evaluation.
_CIFAR10 = MappingProxyType(
    {**_DIGITS, "network": "mobilenet_v1_050", "dataset": "cifar10", "inference": "int8"}
)
_CIFAR10_IMAGES = "ed5bad089e439be7"  # the authors' pixels, with the loader's splits

# Each budget has one largest uniform policy: no other uniform one that fits is wider on a side.
# Where there are two, either may be the better one, and 0 would not be the best without a search.
_BUDGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bismo-edge": ("w3a2", "w4a2", "w6a2"),
        "bismo-cloud": ("w2a3", "w3a3"),
        "bitfusion": ("w2a4", "w2a6", "w2a8"),
    }
)
_CIFAR10_BUDGETS = (("bismo-edge", "w4a2"), ("bismo-cloud", "w3a3"), ("bitfusion", "w3a8"))

# What is learned on, and one thing at a time that is another one there. The budget of a device is
# its own: w3a2 is not the one largest uniform policy on BitFusion.
_SOURCE = "digits-bismo-edge-w3a2"
_CHANGES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "network": {"network": "mobilenet_v2"},
        "device": {"hardware": "bitfusion", "budget": "w2a4"},
        "budget": {"budget": "w6a2"},
    }
)


def _tracks() -> dict[str, Track]:
    found: dict[str, Track] = {}
    for hardware, budgets in _BUDGETS.items():
        for budget in budgets:
            name = f"digits-{hardware}-{budget}"
            settings = {**_DIGITS, "hardware": hardware, "budget": budget}
            found[name] = Track(name, MappingProxyType(settings))
    source = found[_SOURCE]
    for what, change in _CHANGES.items():
        name = f"digits-transfer-{what}"
        found[name] = Track(name, MappingProxyType({**source.settings, **change}), source, TRANSFER)
    for hardware, budget in _CIFAR10_BUDGETS:
        name = f"cifar10-{hardware}-{budget}"
        settings = {**_CIFAR10, "hardware": hardware, "budget": budget}
        found[name] = Track(name, MappingProxyType(settings), suite=CIFAR10, images=_CIFAR10_IMAGES)
    return found


TRACKS: Mapping[str, Track] = MappingProxyType(_tracks())


def find_track(name: str) -> Track:
    """Return a track by its name.

    Raises:
        InputError: there is none.
    """
    if name not in TRACKS:
        raise unknown_name("track", name, TRACKS)
    return TRACKS[name]


def checkpoints(cell: Cell) -> tuple[int, ...]:
    """Say after how many evaluations a run is judged: those of its suite that it may reach.

    A run that is shorter than all of them is a trial, and judged at its end.

    Raises:
        InputError: there is no such track.
    """
    every = find_track(cell.track).suite.checkpoints
    return tuple(count for count in every if count <= cell.evaluations) or (cell.evaluations,)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are neither for publishing nor for tuning.

    Raises:
        InputError: a seed is negative, between 10 and 99, or too large for a file of runs.
    """
    for seed in seeds:
        if seed not in SEEDS and not TUNING_SEEDS <= seed < 2**53:
            raise InputError(
                f"seed {seed} is outside the protocol: published runs have seeds "
                f"{SEEDS[0]} to {SEEDS[-1]}, tuning has {TUNING_SEEDS} and above."
            )
