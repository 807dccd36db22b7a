"""One search by an agent: the loop, its log, and how it goes on after a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from haq_env.agents.algorithms import WARMUP, make_agent
from haq_env.agents.checkpoint import load_agent, restore_generators, save_agent
from haq_env.env import QuantizationEnv
from haq_env.errors import InputError
from haq_env.search.history import History, measure, trial_of

if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

Progress = Callable[[History], None]


def search_with_agent(
    env: QuantizationEnv,
    algorithm: str,
    episodes: int,
    seed: int,
    *,
    folder: Path | None = None,
    resume: bool = False,
    warmup: int = WARMUP,
    progress: Progress | None = None,
) -> History:
    """Train an agent; every episode is one evaluation, the uniform policy is number zero.

    Args:
        env: the environment.
        algorithm: one of `haq_env.agents.ALGORITHMS`.
        episodes: how many episodes the agent plays in all, earlier ones of a resumed run included.
        seed: of the agent.
        folder: where ``episodes.csv`` and ``agent.pt`` are kept; None keeps them nowhere.
        resume: go on from the folder's last finished episode, or begin if it has none; if
            False, a run that is there is thrown away.
        warmup: episodes of random actions.
        progress: called after every evaluation.

    Returns:
        The uniform policy and the agent's policies, ``episodes + 1`` trials. After Ctrl-C, what
        was measured until then.

    Raises:
        InputError: unknown algorithm, no episodes, a damaged state.
    """
    if episodes < 1:
        raise InputError(f"episodes must be 1 or more, not {episodes}.")
    log = None if folder is None else folder / "episodes.csv"
    state = None if folder is None else folder / "agent.pt"
    agent = make_agent(algorithm, env, seed, min(warmup, max(1, episodes // 3)))
    history, done = History(log), 0
    if log is not None and state is not None:
        resume = resume and _can_go_on(log, state)
        if not resume:
            state.unlink(missing_ok=True)
            log.unlink(missing_ok=True)
    if resume and state is not None and log is not None:
        done = load_agent(agent, state)
        history = History.load(log, keep=done + 1)
        for trial in history:
            env.task.remember(trial.bits, trial.accuracy)
    recorder = _Recorder(env, history, state, resume, progress or (lambda _: None))
    try:
        if not len(history):
            measure(env.task, env.task.uniform(), history, project=False)
        recorder.progress(history)
        if done < episodes:
            steps = len(env.task.space.steps)
            agent.learn(
                (episodes - done) * steps,
                callback=recorder,
                reset_num_timesteps=not resume,
                log_interval=None,  # type: ignore[arg-type]  # SB3 takes None: no log of its own
            )
            if state is not None:
                save_agent(agent, state)
    except KeyboardInterrupt:
        pass  # asked for: what has been found is returned
    return history


def _can_go_on(log: Path, state: Path) -> bool:
    """Tell whether there is an agent to go on with; beginning anew must not cost any episode."""
    if state.exists():
        return True
    if log.exists() and log.read_bytes().count(b"\n") > 2:  # the head, and the uniform policy
        raise InputError(
            f"cannot go on from {log}: the agent's state {state} is missing; --overwrite throws "
            "the run away."
        )
    return False


class _Recorder(BaseCallback):
    """Writes every episode down as soon as it is measured, and the agent between episodes."""

    def __init__(
        self,
        env: QuantizationEnv,
        history: History,
        state: Path | None,
        resume: bool,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._task, self._history = env.task, history
        self._state, self._resume, self.progress = state, resume, progress

    def _on_training_start(self) -> None:
        if self._resume and self._state is not None:
            restore_generators(self._agent, self._state)

    def _on_rollout_start(self) -> None:
        if self._state is not None:
            save_agent(self._agent, self._state)

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            info = self.locals["infos"][0]
            self._history.add(
                trial_of(
                    self._task,
                    np.array(info["policy"]),
                    np.array(info["policy_requested"]),
                    info["accuracy"],
                    info["seconds"],
                    info["cache_hit"],
                )
            )
            self.progress(self._history)
        return True

    @property
    def _agent(self) -> OffPolicyAlgorithm:
        return self.model  # type: ignore[return-value]
