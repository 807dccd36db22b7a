"""The names of everything that searches a task, and what each name stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from haq_env import ENVIRONMENTS
from haq_env.agents.algorithms import ALGORITHMS, check_fits
from haq_env.errors import InputError, unknown_name
from haq_env.search import SEARCH, Search, check_needs
from haq_env.search.history import History
from haq_env.task import Task

if TYPE_CHECKING:
    from haq_env.env import QuantizationEnv

RESIDUAL = "residual-"
TRANSFER = "transfer-"

_ID = re.compile(r"(?P<name>.+?)(?P<variant>-Discrete|-Residual)?(?P<version>-v\d+)?")


def methods(*, transfer: bool = False) -> tuple[str, ...]:
    """Return the names of everything that can search a task: those of `SEARCH` and of agents.

    The command line, the leaderboard and the benchmarks take these names and no others.

    Args:
        transfer: list "transfer-" and an agent's name as well, for agents that learn on another
            task first; `search_method` makes them, given that task.
    """
    learning = (f"{TRANSFER}{name}" for name in agents()) if transfer else ()
    return (*SEARCH, *agents(), *learning)


def agents() -> tuple[str, ...]:
    """Return the names of agents.

    They are those of `ALGORITHMS`; with "residual-" before it, an agent corrects a sensitivity
    table instead of choosing bits.
    """
    residual = [
        f"{RESIDUAL}{name}" for name, how in ALGORITHMS.items() if how.actions == "continuous"
    ]
    return (*ALGORITHMS, *residual)


def algorithm_of(name: str) -> str:
    """Return the algorithm of an agent, a key of `ALGORITHMS`; a baseline's name as it is."""
    return name.removeprefix(RESIDUAL)


def env_id(name: str, id: str) -> str:
    """Return the id of the environment that a method plays, where a plain one was given.

    Args:
        name: one of `methods`.
        id: of an environment. A plain one of this package becomes its variant for the method; one
            that names a variant, and one of somebody else's, stays as it is.

    Returns:
        "HAQ-BitFusion-Residual-v0" for "residual-ppo" and "HAQ-BitFusion-v0", for example. A run
        is recorded under this id and `algorithm_of`, so that it is one run however it was asked
        for.

    Raises:
        InputError: the method plays another variant than the id names.
    """
    module, colon, rest = id.rpartition(":")
    parts = _ID.fullmatch(rest)
    if name in SEARCH or parts is None or parts["name"] not in ENVIRONMENTS:
        return id
    plain = f"{module}{colon}{parts['name']}{parts['version'] or ''}"
    if not parts["variant"]:
        return f"{module}{colon}{parts['name']}{_variants(name)[0]}{parts['version'] or ''}"
    if parts["variant"] not in _variants(name):
        kind = f"{ALGORITHMS[algorithm_of(name)].actions} actions"
        wanted = "the actions of a -Residual id" if name.startswith(RESIDUAL) else kind
        raise InputError(f"{name} needs {wanted}, not those of {id}: give {plain}.")
    return id


def _variants(name: str) -> tuple[str, ...]:
    """Return which of `haq_env.VARIANTS` an agent can play, the usual one first."""
    if name.startswith(RESIDUAL):
        return ("-Residual",)
    return ("-Discrete",) if ALGORITHMS[name].actions == "discrete" else ("", "-Residual")


def agent_env(
    name: str, task: Task, seed: int = 0, scales: Sequence[Sequence[float]] | None = None
) -> QuantizationEnv:
    """Make the environment that an agent of `agents` plays a task in.

    Args:
        name: of the agent.
        task: the problem.
        seed: of the search, and so of the table that an agent corrects.
        scales: of the embedding, for an agent that has learned on another network.
    """
    from haq_env.env import QuantizationEnv
    from haq_env.residual import ResidualEnv

    if name.startswith(RESIDUAL):
        return ResidualEnv(task, prior_seed=seed, scales=scales)
    return QuantizationEnv(task, actions=ALGORITHMS[name].actions, scales=scales)


def check_env(name: str, env: QuantizationEnv) -> None:
    """See that an agent can act in an environment.

    Args:
        name: of the agent.
        env: the environment, which may be somebody else's.

    Raises:
        InputError: it has other actions, or no table that could be corrected.
    """
    from haq_env.residual import ResidualEnv

    check_fits(algorithm_of(name), env)
    if name.startswith(RESIDUAL) and not isinstance(env, ResidualEnv):
        raise InputError(
            f"{name} corrects a sensitivity table, which {type(env).__name__} has not: give an "
            "environment that is a ResidualEnv."
        )


def check_method(name: str) -> None:
    """See that there is a method, and what it needs, before anything is spent.

    Raises:
        InputError: it is none of `methods`, it learns on another task first, or a package that
            it needs is missing.
    """
    if not isinstance(name, str):
        raise InputError(
            "a method is a name; of a function of your own, haq_env.search.SEARCH.register("
            f"'mine', function) makes one, not {name!r}."
        )
    if name.startswith(TRANSFER) and name in methods(transfer=True):
        raise InputError(
            f"{name} learns on another task first: give `search_method` that task, or search with "
            f"{name.removeprefix(TRANSFER)} and --transfer-from."
        )
    if name not in methods():
        raise unknown_name("method", name, methods())
    check_needs(name)


def search_method(name: str, source: Callable[[], Task] | None = None) -> Search:
    """Return a method as a function, for what takes one; `haq_env.search_policy` runs one.

    Args:
        name: one of `methods`, also with ``transfer=True`` where there is a source.
        source: makes the task that a "transfer-" agent learns on, when its search begins.

    Returns:
        ``search(task, evaluations, seed) -> History``. An agent plays one episode for each
        evaluation but the first. After Ctrl-C it raises KeyboardInterrupt: what a comparison runs
        is whole or nothing.

    Raises:
        InputError: there is no such method, a package that it needs is missing, or it learns on
            another task first and has no source.
    """
    if source is not None and name.startswith(TRANSFER):
        from haq_env.agents.transfer_methods import transfer_method

        return transfer_method(name, source)
    check_method(name)
    if name in SEARCH:
        return SEARCH[name]

    def agent(task: Task, evaluations: int, seed: int) -> History:
        from haq_env.agents.searching import search_policy

        history = search_policy(task, name, evaluations, seed)
        if history.interrupted:
            raise KeyboardInterrupt
        return history

    return agent
