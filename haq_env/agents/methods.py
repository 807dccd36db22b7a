"""Agents and baselines under one signature, so that a comparison need not tell them apart."""

from __future__ import annotations

from haq_env.agents.algorithms import ALGORITHMS
from haq_env.errors import unknown_name
from haq_env.search import SEARCH, Search
from haq_env.search.history import Charge, History, begin
from haq_env.task import Task

RESIDUAL = "residual-"


def methods() -> tuple[str, ...]:
    """Return the names of everything that can search a task.

    Baselines have the names of `SEARCH`, agents those of `ALGORITHMS`; with "residual-" before
    it, an agent corrects a sensitivity table instead of choosing bits.
    """
    residual = [
        f"{RESIDUAL}{name}" for name, how in ALGORITHMS.items() if how.actions == "continuous"
    ]
    return (*SEARCH, *ALGORITHMS, *residual)


def search_method(name: str) -> Search:
    """Return a baseline, or an agent that plays one episode for each evaluation but the first.

    Raises:
        InputError: there is no such method.
    """
    if name in SEARCH:
        baseline: Search = SEARCH[name]
        return baseline
    if name not in methods():
        raise unknown_name("method", name, methods())
    residual = name.startswith(RESIDUAL)
    algorithm = name.removeprefix(RESIDUAL)

    def agent(task: Task, evaluations: int, seed: int) -> History:
        if evaluations == 1:
            return begin(task, evaluations)  # the uniform policy, and no episode
        from haq_env.agents.run import search_with_agent
        from haq_env.env import QuantizationEnv
        from haq_env.residual import ResidualEnv

        env = (
            ResidualEnv(task)
            if residual
            else QuantizationEnv(task, actions=ALGORITHMS[algorithm].actions)
        )
        history = search_with_agent(env, algorithm, evaluations - 1, seed)
        if history.interrupted:
            raise KeyboardInterrupt
        if isinstance(env, ResidualEnv):
            history.charge = Charge(env.charge_seconds, env.charge)
        return history

    return agent
