"""One search by a baseline that lives in a folder: its log, and how it goes on after a crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from haq_env.errors import InputError
from haq_env.search import SEARCH
from haq_env.search.history import History, RecordedHistory, Trial, recorded
from haq_env.task import Task


def search_with_baseline(
    task: Task,
    method: str,
    evaluations: int,
    seed: int,
    *,
    folder: Path,
    resume: bool = False,
    progress: Callable[[History], None] = lambda _: None,
) -> History:
    """Search a task, and write every evaluation down as soon as it is measured.

    Args:
        task: the problem.
        method: one of `haq_env.search.SEARCH`.
        evaluations: policies to measure in all, the uniform one included.
        seed: of the method.
        folder: where ``episodes.csv`` is kept.
        resume: go on after the evaluations that are in the folder: the method begins anew, and is
            told what it measured then. If False, a log that is there is thrown away.
        progress: called after every evaluation.

    Returns:
        The trials. After Ctrl-C, what was measured until then.

    Raises:
        InputError: unknown method, no evaluations, or a log that is damaged or of another search.
    """
    search = SEARCH[method]
    if evaluations < 1:
        raise InputError(f"evaluations must be 1 or more, not {evaluations}.")
    log = folder / "episodes.csv"
    known: Sequence[Trial] = ()
    if resume and log.exists():
        history = History.read(log)
        history.check(task)
        known = History.load(log, keep=len(history))[:]  # a row that was cut off goes
    if len(known) > evaluations:
        raise InputError(f"{log} has {len(known)} evaluations already, more than {evaluations}.")
    for trial in known:
        task.remember(trial.bits, trial.accuracy)
    found = RecordedHistory(log, progress, known, anew=not (resume and log.exists()))
    try:
        with recorded(found):
            returned = search(task, evaluations, seed)
        if returned is not found:  # a method that does not use `begin`
            for trial in returned[len(found) :]:
                found.add(trial)
            found.charge = returned.charge
    except KeyboardInterrupt:
        found.interrupted = True  # asked for: what has been found is returned
    return found
