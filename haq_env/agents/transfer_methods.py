"""Methods that learn on one task before they search another one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from haq_env.agents.methods import TRANSFER, agent_env, agents, algorithm_of
from haq_env.errors import unknown_name
from haq_env.search import Search
from haq_env.search.charge import Charge
from haq_env.search.folder import AGENT
from haq_env.search.history import History, begin
from haq_env.task import Task

LEARNING = 200  # evaluations on the first task, its uniform policy included


def transfer_method(name: str, source: Callable[[], Task]) -> Search:
    """Return an agent that learns on a task, and then searches the one that it is given.

    Evaluation 1 is the uniform policy, evaluation 2 what the agent decides without any search.
    From there it goes on learning, with its networks, on the scales that it knows, and without
    random episodes. Its first lessons, `LEARNING` evaluations with the same seed, and the tables
    that it corrects are the charge.

    Args:
        name: "transfer-" and one of `haq_env.agents.methods.agents`.
        source: makes the task to learn on, when the search begins.

    Raises:
        InputError: there is no such method.
    """
    known = [f"{TRANSFER}{agent}" for agent in agents()]
    if name not in known:
        raise unknown_name("method", name, known)
    agent = name.removeprefix(TRANSFER)

    def transferred(task: Task, evaluations: int, seed: int) -> History:
        if evaluations == 1:
            return begin(task, evaluations)  # the uniform policy, which no agent decides
        from haq_env.agents.checkpoint import load_scales
        from haq_env.agents.run import search_with_agent
        from haq_env.agents.transfer import Source, apply_agent

        algorithm = algorithm_of(agent)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="haq-env-") as folder:
            first = agent_env(agent, source(), seed)
            _whole(search_with_agent(first, algorithm, LEARNING - 1, seed, folder=Path(folder)))
            seconds = time.perf_counter() - start
            state = Path(folder) / AGENT
            learned = Source(state, type(first).__name__, algorithm, {}, load_scales(state))
            env = agent_env(agent, task, seed, learned.scales)
            history = apply_agent(learned, env)
            if evaluations > 2:
                more = search_with_agent(
                    env, algorithm, evaluations - 2, seed, prepare=learned.warm_start, warmup=0
                )
                for trial in _whole(more)[1:]:  # its first one is the uniform policy again
                    history.add(trial)
        tables = [each.charge for each in (first, env) if each.charge is not None]
        history.charge = Charge(
            seconds + sum(table.seconds for table in tables[1:]),
            LEARNING + sum(table.evaluations for table in tables),
        )
        return history

    return transferred


def _whole(history: History) -> History:
    if history.interrupted:
        raise KeyboardInterrupt
    return history
