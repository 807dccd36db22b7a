"""One search by any method, by name: what a script calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from haq_env.agents.methods import agent_env, algorithm_of, check_method
from haq_env.errors import InputError
from haq_env.search import SEARCH
from haq_env.search.history import History
from haq_env.search.run import check_length, search_with_baseline
from haq_env.task import Task


def search_policy(
    task: Task,
    method: str,
    evaluations: int,
    seed: int = 0,
    *,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[History], None] | None = None,
) -> History:
    """Search the policy of a task: baselines and agents alike, by the names of `methods`.

    (It is no `haq_env.search`, because that is the package of the search methods.)

    Args:
        task: the problem.
        method: one of `haq_env.methods`.
        evaluations: policies to measure in all, the uniform one included, 1 or more. An agent
            plays one episode for each but the first. A method may end before, none goes on after.
        seed: of the method, 0 to 2**31 - 1; that of the finetuning is the task's.
        folder: where ``episodes.csv`` and an agent's ``agent.pt`` are kept, made where it is
            missing; None keeps nothing.
        resume: go on with the search of the same arguments that is in the folder, or begin where
            there is none; if False, one that is there is thrown away.
        progress: called after every evaluation with all until then.

    Returns:
        The trials, the uniform policy first, and in ``charge`` what was computed before. After
        Ctrl-C what was measured until then, with ``interrupted`` set; it may be empty.

    Raises:
        InputError: an unknown method, or one that needs a package that is missing, no evaluations
            or fewer than the search in the folder has, nothing to resume from without a folder, a
            folder that cannot be made, or what is in it is damaged or of another search.
    """
    check_method(method)
    for name, number, least in (("evaluations", evaluations, 1), ("seed", seed, 0)):
        whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
        if not whole or not least <= number < 2**31:
            raise InputError(f"{name} must be an integer, {least} or more, not {number!r}.")
    if resume and folder is None:
        raise InputError("to resume a search give its folder.")
    if resume and folder is not None:
        check_length(Path(folder) / "episodes.csv", evaluations)
    if method not in SEARCH and evaluations > 1:
        from haq_env.agents.run import search_with_agent

        return search_with_agent(
            agent_env(method, task, seed),
            algorithm_of(method),
            evaluations - 1,
            seed,
            folder=folder,
            resume=resume,
            progress=progress,
        )
    # the one evaluation that no agent decides is the uniform policy's
    name = method if method in SEARCH else "uniform"
    return search_with_baseline(
        task, name, evaluations, seed, folder=folder, resume=resume, progress=progress
    )
