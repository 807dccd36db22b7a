"""One search by an agent: the loop, its log, and how it goes on after a crash."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from haq_env.agents.algorithms import WARMUP, make_agent
from haq_env.agents.checkpoint import load_agent, restore_generators, save_agent
from haq_env.env import QuantizationEnv
from haq_env.errors import InputError, OccupiedError
from haq_env.evaluation import Evaluation
from haq_env.files import make_folder, replace_file
from haq_env.search.folder import AGENT, LOG, MEASURED
from haq_env.search.history import History, Trial, measure, trial_of
from haq_env.search.run import RecordedHistory
from haq_env.task import Task

Progress = Callable[[History], None]
_ANSWER = tuple(field.name for field in fields(Evaluation))  # in the info of a last step


def search_with_agent(
    env: gym.Env[Any, Any],
    algorithm: str,
    episodes: int,
    seed: int,
    *,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    warmup: int = WARMUP,
    progress: Progress | None = None,
    prepare: Callable[[BaseAlgorithm], None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> History:
    """Train an agent; every episode is one evaluation, the uniform policy is number zero.

    Args:
        env: the environment, with or without the wrappers of `gymnasium.make`.
        algorithm: one of `haq_env.agents.ALGORITHMS`.
        episodes: how many episodes the agent plays in all, earlier ones of a resumed run included.
        seed: of the agent.
        folder: where ``episodes.csv`` and ``agent.pt`` are kept, made where it is missing; None
            keeps them nowhere.
        resume: go on from the folder's last finished rollout (one episode of an off-policy
            agent, a few of an on-policy one), or begin if it has none; if False, a run that is
            there is thrown away once the first policy is measured.
        warmup: episodes of random actions; on-policy agents have none.
        progress: called after every evaluation.
        prepare: called with the agent before it acts for the first time, for weights that were
            learned elsewhere; not called where a run goes on, whose agent has its own.
        settings: overrides for `haq_env.agents.algorithms.make_agent`; a run must be resumed
            with the same ones.

    Returns:
        The uniform policy and the agent's policies, ``episodes + 1`` trials, and in ``charge``
        what the environment computed before. After Ctrl-C, what was measured until then.

    Raises:
        InputError: unknown algorithm or setting, the wrong kind of actions, no episodes or fewer
            than a resumed run has, a damaged state, a wrapper of one's own, a folder that cannot
            be made.
    """
    env = _inside(env)
    if episodes < 1:
        raise InputError(f"episodes must be 1 or more, not {episodes}.")
    warmup = min(warmup, max(1, episodes // 3))
    agent = _without_a_log(make_agent(algorithm, env, seed, warmup, **(settings or {})))
    place = None if folder is None else make_folder(folder)
    log = None if place is None else place / LOG
    state = None if place is None else place / AGENT
    if log is not None and state is not None and resume and _can_go_on(log, state):
        history = _gone_on(agent, state, log, env.task, episodes)
    else:
        resume, history = False, RecordedHistory(log, lambda _: None, History(), anew=True)
        if prepare is not None:
            prepare(agent)
    played = max(0, len(history) - 1)
    recorder = _Recorder(env, history, state, resume, progress or (lambda _: None))
    try:
        if not len(history):
            measure(env.task, env.task.uniform(), history, project=False)
        recorder.progress(history)
        steps = len(env.task.space.steps)
        for count in _stretches(agent, episodes - played, steps):
            agent.learn(
                count * steps,
                callback=recorder,
                reset_num_timesteps=agent.num_timesteps == 0,
                log_interval=None,  # type: ignore[arg-type]  # SB3 takes None: no log of its own
            )
            if state is not None:
                save_agent(agent, state)
        if log is not None:
            log.with_name(MEASURED).unlink(missing_ok=True)
    except KeyboardInterrupt:
        history.interrupted = True  # asked for: what has been found is returned
    return history


def _without_a_log(agent: BaseAlgorithm) -> BaseAlgorithm:
    """Keep SB3 from making a folder for a log that nobody has asked for."""
    if not agent.verbose and agent.tensorboard_log is None:
        agent.set_logger(Logger(None, []))
    return agent


def _gone_on(agent: BaseAlgorithm, state: Path, log: Path, task: Task, episodes: int) -> History:
    """Bring an agent back to where it was saved, and return what it had measured by then."""
    if getattr(agent, "use_sde", False):  # SB3 draws its noise before anything is saved
        raise InputError(f"{state.parent}: a run with use_sde cannot go on where it was.")
    done = load_agent(agent, state)
    if done > episodes:
        raise InputError(f"the run in {state.parent} has {done} episodes, more than {episodes}.")
    _remember(log, task, done + 1)
    return History.load(log, keep=done + 1)


def _remember(log: Path, task: Task, saved: int) -> None:
    """Let a task answer for all that was measured before a kill.

    The agent goes on from where it was saved and plays the episodes after that again. The log is
    cut back to there, so a copy keeps them until they are played: the next kill may come sooner.
    """
    copy = log.with_name(MEASURED)
    known, earlier = History.read(log), History.read(copy) if copy.exists() else History()
    for each in (known, earlier):
        each.check(task)  # what cannot be gone on with stays as it is
    if len(earlier) >= len(known):
        known = earlier
    elif saved <= len(known):  # else the log is damaged, which loading it will say
        replace_file(copy, log.read_bytes())
    for trial in known:
        task.remember(trial.bits, trial.accuracy)


def episode_trial(task: Task, info: Mapping[str, Any]) -> Trial:
    """Describe a finished episode by the last ``info`` of its environment."""
    return trial_of(
        task,
        np.array(info["policy"]),
        np.array(info["policy_requested"]),
        Evaluation(**{name: info[name] for name in _ANSWER}),
    )


def _stretches(agent: BaseAlgorithm, episodes: int, steps: int) -> Iterator[int]:
    """Divide the episodes that are left into calls of ``learn``, which only plays whole rollouts.

    The last rollout of an on-policy agent is as short as it takes: no episode is measured beyond
    those asked for, and every one is learned from.
    """
    if not isinstance(agent, OnPolicyAlgorithm):
        yield from [episodes] * (episodes > 0)
        return
    rest = episodes % max(1, agent.n_steps // steps)
    if episodes > rest:
        yield episodes - rest
    if rest:
        agent.n_steps = agent.rollout_buffer.buffer_size = rest * steps
        yield rest


def _inside(env: gym.Env[Any, Any]) -> QuantizationEnv:
    """Take the wrappers of `gymnasium.make` off, which pass no attributes on."""
    if not isinstance(env.unwrapped, QuantizationEnv):
        raise InputError(f"env must be an environment of haq-env, not {env}.")
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, (PassiveEnvChecker, OrderEnforcing, TimeLimit)):
            raise InputError(
                f"the wrapper {type(env).__name__} would never be called: give the environment "
                "without it, or train on it with the algorithm's own class."
            )
        env = env.env
    return env.unwrapped  # type: ignore[return-value]  # seen above


def _can_go_on(log: Path, state: Path) -> bool:
    """Tell whether there is an agent to go on with; beginning anew must not cost any episode."""
    if state.exists():
        return True
    if log.exists() and log.read_bytes().count(b"\n") > 2:  # the head, and the uniform policy
        raise OccupiedError(
            f"cannot go on from {log}: the agent's state {state} is missing. Without resume the "
            "run is thrown away."
        )
    return False


class _Recorder(BaseCallback):
    """Writes every episode down as soon as it is measured, and the agent between rollouts."""

    def __init__(
        self,
        env: QuantizationEnv,
        history: History,
        state: Path | None,
        resume: bool,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._env, self._task, self._history = env, env.task, history
        self._state, self._resume, self.progress = state, resume, progress

    def _on_training_start(self) -> None:
        if self._resume and self._state is not None:
            restore_generators(self.model, self._state)
            self._resume = False  # only once: a run may be in two stretches
        if self._history.charge is None:  # the environment has been reset by now
            self._history.charge = self._env.charge

    def _on_rollout_start(self) -> None:
        if self._state is not None:
            save_agent(self.model, self._state)

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            info = self.locals["infos"][0]
            self._history.add(episode_trial(self._task, info))
            self.progress(self._history)
            if isinstance(self.model, OnPolicyAlgorithm):  # which does not count them itself
                self.model._episode_num += 1
        return True
