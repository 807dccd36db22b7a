"""What the leaderboard runs: tracks, seeds, and the evaluations after which it looks.

The rules in words, with their reasons, are in ``benchmarks/LEADERBOARD.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
CHECKPOINTS = (50, 100, 200, 400)  # evaluations after which a run's best policy counts
FEWEST_SEEDS = 5  # that a place takes, where anybody has run so many
MOST_EVALUATIONS = 1000  # of a run
FRESH_SEEDS = (1000, 1001, 1002)  # of the finetuning that scores a policy on test images


@dataclass(frozen=True)
class Track:
    """One problem of the leaderboard.

    Attributes:
        name: what people call it, for example ``"digits-bismo-edge-w3a2"``.
        settings: arguments of `haq_env.task.make_task`, without any path of a machine.
    """

    name: str
    settings: Mapping[str, Any] = field(hash=False)

    def task(self, **runtime: Any) -> Task:
        """Build the problem; ``runtime`` adds what decides no outcome: cache, workers, device."""
        from haq_env.task import make_task

        return make_task(**{**self.settings, **runtime})

    def __reduce__(self) -> tuple[Any, ...]:
        # a mapping proxy cannot be sent to another process
        return Track, (self.name, dict(self.settings))


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
class Step:
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
        charge: what was computed before the first evaluation, in evaluations.
        repeats: evaluations of a policy that this run had measured before.
        seconds: outside the evaluator.
        wall: in all; evaluations that the cache knew took none. 0 where nobody has noted it.
        arithmetic: of the machine that it ran on, see `haq_env.leaderboard.arithmetic`; empty
            where nobody has noted it.
    """

    cell: Cell
    steps: tuple[Step, ...]
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

# Each budget has one largest uniform policy: no other uniform one that fits is wider on a side.
# Where there are two, either may be the better one, and 0 would not be the best without a search.
_BUDGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bismo-edge": ("w3a2", "w4a2", "w6a2"),
        "bismo-cloud": ("w2a3", "w3a3"),
        "bitfusion": ("w2a4", "w2a6", "w2a8"),
    }
)


def _tracks() -> Iterator[Track]:
    for hardware, budgets in _BUDGETS.items():
        for budget in budgets:
            settings = {**_DIGITS, "hardware": hardware, "budget": budget}
            yield Track(f"digits-{hardware}-{budget}", MappingProxyType(settings))


TRACKS: Mapping[str, Track] = MappingProxyType({track.name: track for track in _tracks()})


def find_track(name: str) -> Track:
    """Return a track by its name.

    Raises:
        InputError: there is none.
    """
    if name not in TRACKS:
        raise unknown_name("track", name, TRACKS)
    return TRACKS[name]


def checkpoints(evaluations: int) -> tuple[int, ...]:
    """Say after how many evaluations a run is judged: those of `CHECKPOINTS` that it may reach.

    A run that is shorter than all of them is a trial, and judged at its end.
    """
    return tuple(count for count in CHECKPOINTS if count <= evaluations) or (evaluations,)


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
