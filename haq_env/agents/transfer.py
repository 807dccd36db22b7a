"""An agent that has learned on one network, device or budget, on another one.

HAQ claims that an agent trained on MobileNet-V1 gives a good policy for MobileNet-V2 without any
search there (Wang et al., CVPR 2019, section 4.1). What an agent carries over are its networks and
the scales on which it has seen layers; its memory and its optimizers stay behind.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.spaces import Discrete
from stable_baselines3.common.base_class import BaseAlgorithm

from haq_env import VARIANTS
from haq_env.agents.algorithms import make_agent
from haq_env.agents.checkpoint import load_policy, load_scales
from haq_env.agents.methods import RESIDUAL
from haq_env.agents.run import episode_trial
from haq_env.env import QuantizationEnv
from haq_env.errors import InputError
from haq_env.search.charge import charge_file
from haq_env.search.folder import AGENT
from haq_env.search.history import History, begin


@dataclass(frozen=True)
class Source:
    """A finished run whose agent is to be used elsewhere.

    Attributes:
        state: the agent's file.
        env: id of the environment it has learned in.
        algorithm: how it has learned.
        settings: of the run, as they were recorded.
        scales: on which it has seen layers; the environment's argument of that name.
    """

    state: Path
    env: str
    algorithm: str
    settings: dict[str, Any]
    scales: list[list[float]]

    @classmethod
    def open(cls, folder: Path) -> Source:
        """Read the folder of a run of ``haq-env search``.

        Raises:
            InputError: there is no run, or a part of it is missing or damaged.
        """
        record, state = folder / "settings.json", folder / AGENT
        if not record.exists() or not state.exists():
            raise InputError(
                f"{folder} holds no trained agent: settings.json and agent.pt are needed, as "
                "haq-env search writes them."
            )
        scales = load_scales(state)
        try:
            settings = json.loads(record.read_text(encoding="utf-8"))
            return cls(state, settings["env"], settings["algo"], settings, scales)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{record} cannot be read: {error!r}.") from error

    def check(
        self, algorithm: str, env: QuantizationEnv, settings: Mapping[str, Any] | None = None
    ) -> None:
        """See that the agent can act in an environment, before anything is lost.

        Args:
            algorithm: the one that will go on.
            env: the environment, made with the source's scales.
            settings: overrides for `make_agent`, those that the source was trained with.

        Raises:
            InputError: another algorithm, another kind of environment, or another number of
                actions.
        """
        seen, here = _variant(self.env), _variant_of(env)
        if algorithm != self.algorithm:
            table = RESIDUAL if seen == "-Residual" else ""
            raise InputError(
                f"the agent in {self.state.parent} is {table}{self.algorithm}, not {algorithm}: "
                f"take {table}{self.algorithm}."
            )
        if seen != here:
            raise InputError(
                f"the agent in {self.state.parent} has learned in {self.env}, whose observations "
                f"or actions differ from those of {env.spec.id if env.spec else env}: take the id "
                f"{'with ' + seen if seen else 'without suffix'}."
            )
        self.warm_start(make_agent(algorithm, env, seed=0, warmup=0, **(settings or {})))

    def warm_start(self, agent: BaseAlgorithm) -> None:
        """Give a new agent what this one has learned.

        Raises:
            InputError: its networks have other sizes.
        """
        load_policy(agent, self.state)


def apply_agent(
    source: Source,
    env: QuantizationEnv,
    settings: dict[str, Any] | None = None,
    log: Path | None = None,
) -> History:
    """Let an agent decide once on a task it has never seen, without any search.

    Args:
        source: the agent.
        env: the environment, made with the source's scales.
        settings: overrides for `make_agent`, those that the source was trained with.
        log: CSV file for the two evaluations; None keeps none.

    Returns:
        The uniform policy and the agent's one, see `decide`.
    """
    agent = make_agent(source.algorithm, env, seed=0, warmup=0, **(settings or {}))
    source.warm_start(agent)
    if log is not None:
        for path in (log, charge_file(log)):
            path.unlink(missing_ok=True)
    return decide(agent, env, History(log))


def decide(agent: BaseAlgorithm, env: QuantizationEnv, history: History | None = None) -> History:
    """Let an agent play one episode without exploring.

    Args:
        agent: made with the environment.
        env: the environment.
        history: see `haq_env.search.history.begin`.

    Returns:
        The uniform policy and the agent's one. Its choice takes no evaluation; the one
        evaluation it is given only tells how good it is.
    """
    world = agent.get_env()
    assert world is not None, "it has been made with one"
    masked = "action_masks" in inspect.signature(agent.predict).parameters  # MaskablePPO
    history = begin(env.task, 1, history)
    observation: Any = world.reset()
    while True:
        masks: dict[str, Any] = {"action_masks": env.action_masks()} if masked else {}
        action, _ = agent.predict(observation, deterministic=True, **masks)
        observation, _, done, infos = world.step(action)
        if done[0]:
            history.add(episode_trial(env.task, infos[0]))
            history.charge = env.charge
            return history


def _variant(id: str) -> str:
    """Return which of `VARIANTS` an id names; "" where it names none."""
    return next((suffix for suffix in VARIANTS if suffix and suffix in id), "")


def _variant_of(env: QuantizationEnv) -> str:
    from haq_env.residual import ResidualEnv

    if isinstance(env, ResidualEnv):
        return "-Residual"
    return "-Discrete" if isinstance(env.action_space, Discrete) else ""
