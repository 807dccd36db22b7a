"""One search by any method, by name: what a script calls."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from haq_env.agents.methods import agent_env, algorithm_of, check_method
from haq_env.errors import InputError
from haq_env.files import make_folder, replace_file
from haq_env.search import SEARCH
from haq_env.search.folder import LOG, SETTINGS, check_same, sole_owner
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
        folder: where ``episodes.csv``, ``search.json`` (what it is of) and an agent's ``agent.pt``
            are kept, made where it is missing; None keeps nothing.
        resume: go on with the search of the same arguments that is in the folder, or begin where
            there is none; if False, one that is there is thrown away once the first policy is
            measured. Weights and images are told from others by their digests, an evaluator of
            one's own by its type alone.
        progress: called after every evaluation with all until then.

    Returns:
        The trials, the uniform policy first, and in ``charge`` what was computed before. After
        Ctrl-C what was measured until then, with ``interrupted`` set; it may be empty.

    Raises:
        InputError: an unknown method, or one that needs a package that is missing, no evaluations
            or fewer than the search in the folder has, nothing to resume from without a folder, a
            folder that cannot be made, one in which another process is searching, one of a
            ``haq-env`` command, or what is in it is damaged or of another search.
    """
    check_method(method)
    for name, number, least in (("evaluations", evaluations, 1), ("seed", seed, 0)):
        whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
        if not whole or not least <= number < 2**31:
            raise InputError(f"{name} must be an integer, {least} or more, not {number!r}.")
    if folder is None:
        if resume:
            raise InputError("to resume a search give its folder.")
        return _search(task, method, evaluations, seed, None, False, progress)
    place = make_folder(folder)
    with sole_owner(place):
        about = json.loads(json.dumps(_about(task, method, seed), default=str))
        path = place / SETTINGS
        if (place / "settings.json").exists():
            raise InputError(f"{place} is the folder of a haq-env command: take another one.")
        if resume:
            check_length(place / LOG, evaluations)
            if path.exists() or (place / LOG).exists():
                check_same(path, about)

        def noted(history: History) -> None:
            if not path.exists():  # not before: until the first evaluation an earlier run stays
                replace_file(path, json.dumps(about, indent=1) + "\n")
            if progress is not None:
                progress(history)

        return _search(task, method, evaluations, seed, place, resume, noted)


def _about(task: Task, method: str, seed: int) -> dict[str, Any]:
    """Return what decides how a search comes out, apart from its length."""
    from haq_env.run_folder import made_of

    made = made_of(task, task.trained().subject.checkpoint) if task.is_trained else {}
    budget = {"metric": task.budget.metric, "limit": task.budget.limit}
    return {**task.settings, "budget": budget, "method": method, "method_seed": int(seed), **made}


def _search(
    task: Task,
    method: str,
    evaluations: int,
    seed: int,
    folder: Path | None,
    resume: bool,
    progress: Callable[[History], None] | None,
) -> History:
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
