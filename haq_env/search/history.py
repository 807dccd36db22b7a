"""What a search has measured so far, as records and as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from haq_env.errors import InputError
from haq_env.policy import ACTIVATION, WEIGHT, Bits
from haq_env.task import Task


@dataclass(frozen=True)
class Trial:
    """One evaluated policy.

    Attributes:
        w_bits: a digit for each layer ("83428"), since no width has two.
        a_bits: likewise.
        requested_w_bits: before the projection.
        requested_a_bits: before the projection.
        accuracy: top-1 in percent on held-out images.
        cost: in the unit of the budget's metric.
        cost_ratio: to the cost of the 8-bit network.
        seconds: of the evaluation.
        cache_hit: whether this policy had been measured before.
    """

    w_bits: str
    a_bits: str
    requested_w_bits: str
    requested_a_bits: str
    accuracy: float
    cost: float
    cost_ratio: float
    seconds: float
    cache_hit: bool

    @property
    def bits(self) -> Bits:
        """The policy, int64 [L, 2]."""
        return np.array([[int(w), int(a)] for w, a in zip(self.w_bits, self.a_bits, strict=True)])


class History(Sequence[Trial]):
    """All trials of one search in order; the first one is the uniform policy.

    Args:
        path: CSV file that every trial is appended to at once; None keeps them in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._trials: list[Trial] = []
        self._path = path

    def add(self, trial: Trial) -> None:
        """Append one trial, and write it to the file before returning."""
        if self._path is not None:
            fresh = not self._path.exists()
            with self._path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(["evaluation", *asdict(trial)])
                writer.writerow([len(self._trials), *asdict(trial).values()])
        self._trials.append(trial)

    @property
    def best(self) -> Trial:
        """The first trial of the highest accuracy."""
        return max(self._trials, key=lambda trial: trial.accuracy)

    def best_so_far(self) -> list[float]:
        """Return the highest accuracy after each evaluation, in percent."""
        return [float(a) for a in np.maximum.accumulate([t.accuracy for t in self._trials])]

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._trials[index]

    @classmethod
    def load(cls, path: Path, keep: int | None = None) -> History:
        """Read a CSV file back.

        Args:
            path: the file; trials added later are appended to it.
            keep: forget everything after so many trials, in the file as well.

        Raises:
            InputError: the file is missing, or one of the kept rows is damaged.
        """
        history = cls()
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error}.") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} is damaged: {error}.") from error
        for row in rows[:keep]:
            try:
                history.add(_trial(row, len(history)))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path}: row {len(history)} is damaged ({error!r}).") from error
        if keep is not None and len(history) < keep:
            raise InputError(f"{path} has {len(history)} evaluations; {keep} were expected.")
        scratch = path.with_name(path.name + ".part")
        scratch.unlink(missing_ok=True)
        kept = cls(scratch)
        for trial in history:
            kept.add(trial)
        if len(kept):
            scratch.replace(path)
        else:
            path.unlink()
        kept._path = path
        return kept


def _trial(row: dict[str, str], number: int) -> Trial:
    """Read one row; raises KeyError, TypeError or ValueError for a damaged one."""
    if int(row["evaluation"]) != number:
        raise ValueError(f"evaluation {row['evaluation']} instead of {number}")
    digits = [row[name] for name in ("w_bits", "a_bits", "requested_w_bits", "requested_a_bits")]
    if len({len(text) for text in digits}) != 1 or not set("".join(digits)) <= set("12345678"):
        raise ValueError("bits must be one digit 1 to 8 for each layer")
    accuracy, cost, ratio, seconds = (
        float(row[name]) for name in ("accuracy", "cost", "cost_ratio", "seconds")
    )
    if not np.isfinite([accuracy, cost, ratio, seconds]).all():
        raise ValueError("numbers must be finite")
    cache_hit = {"True": True, "False": False}[row["cache_hit"]]
    w, a, requested_w, requested_a = digits
    return Trial(w, a, requested_w, requested_a, accuracy, cost, ratio, seconds, cache_hit)


def begin(task: Task, evaluations: int) -> History:
    """Start a search of a task: check its length, and measure the uniform policy.

    Raises:
        InputError: fewer than one evaluation.
    """
    if evaluations < 1:
        raise InputError(f"evaluations must be 1 or more, not {evaluations}.")
    history = History()
    measure(task, task.uniform(), history, project=False)
    return history


def measure(task: Task, requested: Bits, history: History, *, project: bool = True) -> Trial:
    """Evaluate one policy [L, 2], and add it to the history.

    Args:
        task: the problem.
        requested: the policy.
        history: what it is added to.
        project: bring it inside the budget, and spend the slack, before it is evaluated. False
            takes a policy as it is that fits already, such as a uniform one.
    """
    bits = task.project(requested) if project else requested
    result = task.evaluate(bits)
    trial = trial_of(task, bits, requested, result.accuracy, result.seconds, result.cache_hit)
    history.add(trial)
    return trial


def trial_of(
    task: Task, bits: Bits, requested: Bits, accuracy: float, seconds: float, cache_hit: bool
) -> Trial:
    """Describe an evaluation that has been made."""
    cost = task.cost(bits)
    return Trial(
        _digits(bits, WEIGHT),
        _digits(bits, ACTIVATION),
        _digits(requested, WEIGHT),
        _digits(requested, ACTIVATION),
        accuracy,
        cost,
        cost / task.budget.reference,
        seconds,
        cache_hit,
    )


def _digits(bits: Bits, side: int) -> str:
    return "".join(str(int(b)) for b in bits[:, side])
