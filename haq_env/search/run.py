"""One search by a baseline that lives in a folder: its log, and how it goes on after a crash."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection
from pathlib import Path

from haq_env.errors import InputError
from haq_env.files import make_folder
from haq_env.search import SEARCH
from haq_env.search.folder import BESIDE_A_LOG, LOG
from haq_env.search.history import History, Trial
from haq_env.task import Task


def search_with_baseline(
    task: Task,
    method: str,
    evaluations: int,
    seed: int,
    *,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[History], None] | None = None,
) -> History:
    """Search a task, and write every evaluation down as soon as it is measured.

    Args:
        task: the problem.
        method: one of `haq_env.search.SEARCH`. One that takes no ``history`` is written down
            when it has ended.
        evaluations: policies to measure in all, the uniform one included.
        seed: of the method.
        folder: where ``episodes.csv`` is kept, made where it is missing; None keeps nothing.
        resume: go on after the evaluations that are in the folder: the method begins anew, and is
            told what it measured then. If False, a log that is there is thrown away.
        progress: called after every evaluation.

    Returns:
        The trials. After Ctrl-C, what was measured until then.

    Raises:
        InputError: unknown method, no evaluations, a folder that cannot be made, or a log that
            is damaged or of another search.
    """
    search: Callable[..., History] = SEARCH[method]
    if evaluations < 1:
        raise InputError(f"evaluations must be 1 or more, not {evaluations}.")
    log = None if folder is None else make_folder(folder) / LOG
    resume = resume and log is not None and log.exists()
    known = History()
    if resume and log is not None:
        check_length(log, evaluations)
        known = History.read(log)
        known.check(task)
        History.load(log, keep=len(known))  # a row that was cut off goes
    for trial in known:
        task.remember(trial.bits, trial.accuracy)
    found = RecordedHistory(
        log, progress or (lambda _: None), known, anew=not resume, most=evaluations
    )
    try:
        watched = "history" in _parameters(method, search)
        returned = search(task, evaluations, seed, **({"history": found} if watched else {}))
        if not isinstance(returned, History):
            raise InputError(
                f"search method {method!r} must return its History, not {type(returned).__name__}."
            )
        if returned is not found:
            for trial in returned[len(found) :]:
                found.add(trial)
            if found.charge is None:
                found.charge = returned.charge
    except KeyboardInterrupt:
        found.interrupted = True  # asked for: what has been found is returned
    return found


def _parameters(method: str, search: Callable[..., History]) -> Collection[str]:
    """Return the names of a method's parameters, having seen that it can be called."""
    signature = inspect.signature(search)
    try:
        signature.bind(None, 1, 0)
    except TypeError as error:
        raise InputError(
            f"search method {method!r} is called as search(task, evaluations, seed): {error}."
        ) from error
    return signature.parameters


def check_length(log: Path, evaluations: int) -> None:
    """Refuse to go on with a search for fewer evaluations than it has made.

    Args:
        log: the CSV file of its trials; one that is missing has none.
        evaluations: how many it may make in all.

    Raises:
        InputError: it has more, or the file is damaged.
    """
    made = len(History.read(log)) if log.exists() else 0
    if made > evaluations:
        raise InputError(f"{log} has {made} evaluations already, more than {evaluations}.")


class RecordedHistory(History):
    """A history that is written down and watched, and that can follow an earlier one.

    Args:
        path: CSV file that every new trial is appended to; None keeps them in memory.
        progress: called after every trial.
        known: trials of an interrupted run of the same search, which are in the file. The search
            repeats them, from remembered answers; what comes after them is new.
        anew: a run that is there is thrown away, once there is a first trial to write.
        most: how many trials there may be.
    """

    def __init__(
        self,
        path: Path | None,
        progress: Callable[[History], None],
        known: History,
        *,
        anew: bool = False,
        most: int | None = None,
    ) -> None:
        super().__init__(path)
        self._most = most
        self._progress, self._known, self._anew = progress, known, anew
        self._charge = known.charge  # paid when the search began

    def add(self, trial: Trial) -> None:
        """Append one trial.

        Raises:
            InputError: it is not the one that the earlier run measured here, or one too many.
        """
        if self._most is not None and len(self) >= self._most:
            raise InputError(f"the search goes on after the {self._most} evaluations that it has.")
        if len(self) < len(self._known):
            known = self._known[len(self)]
            if (known.w_bits, known.a_bits) != (trial.w_bits, trial.a_bits):
                raise InputError(
                    f"cannot resume {self._path}: evaluation {len(self)} would be another policy "
                    "now. Was it made by another version, on another machine, or for another "
                    "number of evaluations, which some methods go by?"
                )
            self._trials.append(known)
        else:
            if self._anew and self._path is not None:
                for path in (self._path, *map(self._path.with_name, BESIDE_A_LOG)):
                    path.unlink(missing_ok=True)
                self._anew = False
            super().add(trial)
        self._progress(self)
