"""Agents and baselines under one signature, so that a comparison need not tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from haq_env.agents.algorithms import ALGORITHMS
from haq_env.errors import unknown_name
from haq_env.search import SEARCH, Search, check_needs
from haq_env.search.history import History, begin
from haq_env.task import Task

if TYPE_CHECKING:
    from haq_env.env import QuantizationEnv

RESIDUAL = "residual-"


def methods() -> tuple[str, ...]:
    """Return the names of everything that can search a task: those of `SEARCH` and of agents."""
    return (*SEARCH, *agents())


def agents() -> tuple[str, ...]:
    """Return the names of agents.

    They are those of `ALGORITHMS`; with "residual-" before it, an agent corrects a sensitivity
    table instead of choosing bits.
    """
    residual = [
        f"{RESIDUAL}{name}" for name, how in ALGORITHMS.items() if how.actions == "continuous"
    ]
    return (*ALGORITHMS, *residual)


def agent_env(
    name: str, task: Task, scales: Sequence[Sequence[float]] | None = None
) -> QuantizationEnv:
    """Make the environment that an agent of `agents` plays a task in.

    Args:
        name: of the agent.
        task: the problem.
        scales: of the embedding, for an agent that has learned on another network.
    """
    from haq_env.env import QuantizationEnv
    from haq_env.residual import ResidualEnv

    if name.startswith(RESIDUAL):
        return ResidualEnv(task, scales=scales)
    return QuantizationEnv(task, actions=ALGORITHMS[name].actions, scales=scales)


def search_method(name: str) -> Search:
    """Return a baseline, or an agent that plays one episode for each evaluation but the first.

    Raises:
        InputError: there is no such method, or a package that it needs is missing.
    """
    if name in SEARCH:
        check_needs(name)
        return SEARCH[name]
    if name not in methods():
        raise unknown_name("method", name, methods())

    def agent(task: Task, evaluations: int, seed: int) -> History:
        if evaluations == 1:
            return begin(task, evaluations)  # the uniform policy, and no episode
        from haq_env.agents.run import search_with_agent

        env = agent_env(name, task)
        history = search_with_agent(env, name.removeprefix(RESIDUAL), evaluations - 1, seed)
        if history.interrupted:
            raise KeyboardInterrupt
        return history

    return agent
