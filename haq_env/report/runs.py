"""Runs of search methods, what their scores mean, and runs as a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from haq_env.errors import InputError
from haq_env.files import replace_file
from haq_env.report.scores import Array

LONGEST = 1_000_000  # evaluations of one run, so that a damaged number does not fill the memory


@dataclass(frozen=True, eq=False)
class Run:
    """One search with one seed.

    Attributes:
        task: what was searched.
        method: how.
        seed: of the method.
        best_so_far: the best score after each evaluation, float64 [evaluations]; the first is
            that of the uniform policy, as in every search of `haq_env.search`.
        charge: what was computed before the first evaluation, in evaluations of equal cost.
        seconds: outside the evaluator; None if nobody has measured them.
        hits: evaluations of a policy that had been evaluated before.
    """

    task: str
    method: str
    seed: int
    best_so_far: Array
    charge: float = 0.0
    seconds: float | None = None
    hits: int = 0

    def __post_init__(self) -> None:
        curve = np.array(self.best_so_far, dtype=np.float64)
        curve.setflags(write=False)
        object.__setattr__(self, "best_so_far", curve)
        if curve.ndim != 1 or not curve.size or not np.isfinite(curve).all():
            raise InputError(f"{self}: the best so far must be one finite number or more.")
        steps = np.diff(curve)
        if (steps < 0).any() and (steps > 0).any():
            raise InputError(f"{self}: the best so far goes up and down.")
        numbers = (self.charge, 0.0 if self.seconds is None else self.seconds, self.hits)
        if not all(0 <= number < math.inf for number in numbers):
            raise InputError(f"{self}: charge, seconds and hits must be 0 or more.")

    def __str__(self) -> str:
        return f"run of {self.method!r} on {self.task!r} with seed {self.seed}"


@dataclass(frozen=True)
class Reference:
    """What the scores of a task mean.

    Attributes:
        task: the name that runs have.
        unit: of the scores: ``"top-1 on held-out images (%)"``.
        uniform: score of the uniform policy.
        best_known: the best score that anything has reached.
        optimum: the certified optimum; None where there is no proof.
        higher_is_better: False for a loss.
    """

    task: str
    unit: str
    uniform: float
    best_known: float
    optimum: float | None = None
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not np.isfinite([self.uniform, self.target]).all():
            raise InputError(f"the references of task {self.task!r} must be finite.")
        if self.sign * self.target < self.sign * self.best_known:
            raise InputError(f"task {self.task!r}: the best known is better than the optimum.")

    @property
    def sign(self) -> float:
        """What a score is multiplied with to be better when higher: 1 or -1."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def target(self) -> float:
        """What regret is counted from: the certified optimum, else the best known score."""
        return self.best_known if self.optimum is None else self.optimum

    @property
    def target_name(self) -> str:
        """What `target` is called."""
        return "best known" if self.optimum is None else "certified optimum"


_HEAD = ("task", "method", "seed", "charge", "seconds", "hits", "evaluations", "improvements")


def write_csv(runs: Sequence[Run], path: str | Path) -> Path:
    """Write runs as `to_csv` has them, and return the path.

    Raises:
        InputError: one run twice, or the file cannot be written.
    """
    path = Path(path)
    replace_file(path, to_csv(runs))
    return path


def to_csv(runs: Sequence[Run]) -> str:
    """Return runs as text, one line each, sorted by task, method and seed.

    The last column has the best so far as ``evaluation:score`` for the first evaluation and for
    each that improved, for example ``1:70.9 4:85.8``. Numbers are exact. Seconds are empty where
    they are not known.

    Raises:
        InputError: one run twice.
    """
    check_unique(runs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEAD)
    for run in sorted(runs, key=lambda run: (run.task, run.method, run.seed)):
        curve = run.best_so_far
        changes = [0, *(np.flatnonzero(np.diff(curve)) + 1)]
        writer.writerow(
            [
                *(run.task, run.method, run.seed, float(run.charge)),
                "" if run.seconds is None else float(run.seconds),
                *(run.hits, len(curve)),
                " ".join(f"{index + 1}:{float(curve[index])!r}" for index in changes),
            ]
        )
    return text.getvalue()


def read_csv(path: str | Path) -> list[Run]:
    """Read what `write_csv` has written.

    Raises:
        InputError: the file is missing, cut off or damaged, or has one run twice.
    """
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    if not text.endswith("\n"):
        raise InputError(f"{path} is cut off: its last line does not end.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    runs = []
    try:
        if tuple(next(reader)) != _HEAD:
            raise ValueError(f"the first line must be {','.join(_HEAD)}")
        runs = [_run(line) for line in reader]
        check_unique(runs)
    except (ValueError, csv.Error) as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{path}: line {reader.line_num} is damaged: {reason}.") from error
    return runs


def _run(line: list[str]) -> Run:
    """Read one line; raises ValueError for a damaged one."""
    if len(line) != len(_HEAD):
        raise ValueError(f"{len(line)} columns instead of {len(_HEAD)}")
    task, method, seed, charge, seconds, hits, evaluations, improvements = line
    length = int(evaluations)
    pairs = [pair.partition(":") for pair in improvements.split(" ")]
    starts = [int(start) for start, _, _ in pairs]
    if starts[0] != 1 or starts != sorted(set(starts)) or not starts[-1] <= length <= LONGEST:
        raise ValueError("the improvements must be at rising evaluations from 1 on")
    curve = np.repeat([float(score) for _, _, score in pairs], np.diff([*starts, length + 1]))
    known = float(seconds) if seconds else None
    return Run(task, method, int(seed), curve, float(charge), known, int(hits))


def check_unique(runs: Sequence[Run]) -> None:
    """Raise InputError if one run is there twice."""
    seen: set[tuple[str, str, int]] = set()
    for run in runs:
        key = (run.task, run.method, run.seed)
        if key in seen:
            raise InputError(f"{run} is there twice.")
        seen.add(key)
