"""What a search has measured so far, as records and as a CSV file, and how it measures more."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import overload

import numpy as np

from haq_env.errors import InputError
from haq_env.evaluation import Evaluation
from haq_env.files import writing
from haq_env.policy import Bits, as_policy, from_digits, to_digits
from haq_env.search.charge import Charge, charge_file
from haq_env.task import Task

BATCH = 32  # policies that are measured side by side at most: who waits wants to see progress


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
        stopped_early: whether the accuracy is an estimate, see `Evaluation`.
        note: on how it was measured, see `Evaluation`; mostly empty.
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
    stopped_early: bool = False
    note: str = ""

    @property
    def bits(self) -> Bits:
        """The policy, int64 [L, 2]."""
        return from_digits(self.w_bits, self.a_bits)


class History(Sequence[Trial]):
    """All trials of one search in order; the first one is the uniform policy.

    Args:
        path: CSV file that every trial is appended to at once; None keeps them in memory.

    Attributes:
        interrupted: whether Ctrl-C has ended the search.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.interrupted = False
        self._charge: Charge | None = None
        self._trials: list[Trial] = []
        self._path = path

    def add(self, trial: Trial) -> None:
        """Append one trial, and write it to the file before returning."""
        # first, so that Ctrl-C never leaves a row in the file that the history does not know
        self._trials.append(trial)
        if self._path is not None:
            fresh = not self._path.exists()
            with writing(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(["evaluation", *asdict(trial)])
                writer.writerow([len(self._trials) - 1, *asdict(trial).values()])

    @property
    def charge(self) -> Charge | None:
        """What the search computed before, such as a sensitivity table; None for nothing.

        With a log it is written down beside it, and is back when the log is loaded.
        """
        return self._charge

    @charge.setter
    def charge(self, charge: Charge | None) -> None:
        self._charge = charge
        if self._path is not None and charge is not None:
            charge.save(charge_file(self._path))

    @property
    def best(self) -> Trial:
        """The first trial of the highest accuracy.

        Raises:
            InputError: there is no trial yet.
        """
        if not self._trials:
            raise InputError("nothing has been measured yet, so no trial is the best one.")
        return max(self._trials, key=lambda trial: trial.accuracy)

    def best_so_far(self) -> list[float]:
        """Return the highest accuracy after each evaluation, in percent."""
        return [float(a) for a in np.maximum.accumulate([t.accuracy for t in self._trials])]

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    @overload
    def __getitem__(self, index: int) -> Trial: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trial]: ...
    def __getitem__(self, index: int | slice) -> Trial | list[Trial]:
        return self._trials[index]

    def check(self, task: Task) -> None:
        """See that the trials are of this task, as it is now.

        Raises:
            InputError: one has another cost than here, or does not fit the budget.
        """
        for number, trial in enumerate(self):
            cost = task.cost(trial.bits)
            if not np.isclose(cost, trial.cost, rtol=1e-9) or not task.budget.fits(trial.bits):
                raise InputError(
                    f"cannot resume: evaluation {number} cost {trial.cost:.6g}, and costs "
                    f"{cost:.6g} now. Has the hardware's file or the budget changed since?"
                )

    @classmethod
    def load(cls, path: Path, keep: int | None = None) -> History:
        """Read a CSV file back.

        Args:
            path: the file; trials added later are appended to it.
            keep: forget everything after so many trials, in the file as well.

        Raises:
            InputError: the file is missing, one of the kept rows is damaged, or the charge is.
        """
        history = cls()
        for trial in _trials(path, _text(path), keep):
            history.add(trial)
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
        kept._path, kept._charge = path, Charge.load(charge_file(path))
        return kept

    @classmethod
    def read(cls, path: Path) -> History:
        """Read the trials of a CSV file that no crash has cut off; the file stays as it is.

        Raises:
            InputError: the file is missing or damaged.
        """
        text = _text(path)
        history = cls()
        history._charge = Charge.load(charge_file(path))
        for trial in _trials(path, text[: text.rfind("\n") + 1], None):
            history.add(trial)
        return history


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {error}.") from error


def _trials(path: Path, text: str, keep: int | None) -> Iterator[Trial]:
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    for number, row in enumerate(rows[:keep]):
        try:
            yield _trial(row, number)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: row {number} is damaged ({error!r}).") from error


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
    truth = {"True": True, "False": False}
    cache_hit = truth[row["cache_hit"]]
    stopped_early = truth[row.get("stopped_early", "False")]  # older logs do not say
    note = row.get("note", "")
    if note is None:  # so reads a row that is cut off
        raise ValueError("the note is missing")
    w, a, asked_w, asked_a = digits
    return Trial(
        w, a, asked_w, asked_a, accuracy, cost, ratio, seconds, cache_hit, stopped_early, note
    )


def begin(task: Task, evaluations: int, history: History | None = None) -> History:
    """Start a search of a task: check its length, and measure the uniform policy.

    Args:
        task: the problem.
        evaluations: how many the search may spend.
        history: an empty one to be written into, of whoever called the search; None makes one.

    Returns:
        The history, with one trial.

    Raises:
        InputError: fewer than one evaluation.
    """
    if evaluations < 1:
        raise InputError(f"evaluations must be 1 or more, not {evaluations}.")
    if history is None:
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

    Raises:
        InputError: the policy is none of this network, or does not fit and is not projected.
    """
    requested = as_policy(requested, len(task.layers))
    bits = task.project(requested) if project else requested
    if not task.budget.fits(bits):
        raise InputError(
            f"a policy of cost {task.cost(bits):.6g} is over the budget of "
            f"{task.budget.limit:.6g}: "
            "bring it inside with task.project, or measure it with project=True."
        )
    result = task.evaluate(bits)
    trial = trial_of(task, bits, requested, result)
    history.add(trial)
    return trial


def measure_all(task: Task, requested: Sequence[Bits], history: History) -> list[Trial]:
    """Project policies, each [L, 2], evaluate them in batches, and add each as it comes.

    For searches that know what they want to try before they have the answers: where the evaluator
    has worker processes, or a GPU, those of a batch are measured side by side.
    """
    trials = []
    for start in range(0, len(requested), BATCH):
        wishes = requested[start : start + BATCH]
        batch = [task.project(bits) for bits in wishes]
        for bits, wish, result in zip(batch, wishes, task.evaluate_each(batch), strict=True):
            trials.append(trial_of(task, bits, wish, result))
            history.add(trials[-1])
    return trials


def trial_of(task: Task, bits: Bits, requested: Bits, result: Evaluation) -> Trial:
    """Describe an evaluation that has been made of a policy [L, 2]."""
    cost = task.cost(bits)
    return Trial(
        *to_digits(bits),
        *to_digits(requested),
        result.accuracy,
        cost,
        cost / task.budget.reference,
        result.seconds,
        result.cache_hit,
        result.stopped_early,
        result.note,
    )
