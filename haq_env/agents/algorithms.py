"""The settings of every algorithm, in one place: one set for all environments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gymnasium.spaces import Discrete

from haq_env.errors import InputError, unknown_name

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from haq_env.env import QuantizationEnv

WARMUP = 20  # episodes of random actions before the agent learns (HAQ's released code)
SIGMA, DECAY = 0.6, 0.99  # exploration in [-1, 1]; HAQ starts at 1.0
MEMORY = 128  # episodes that an off-policy agent remembers (HAQ's released code)

# Every decision is told how the whole policy fared, as in HAQ: n-step returns, n = steps of the
# episode, gamma 1 (`EpisodeMemory`, which knows the episode's length and needs no n). One update
# for each step, after the episode, batch 64, 128 episodes of memory: HAQ's released code.
EPISODIC: dict[str, Any] = {
    "gamma": 1.0,
    "batch_size": 64,
    "train_freq": (1, "episode"),
    "gradient_steps": -1,
}
SHARED: dict[str, Any] = {**EPISODIC, "tau": 0.01}  # HAQ's tau; CrossQ has no target networks

# On-policy agents are told the same: with gamma and lambda 1, the advantage of every decision is
# the final reward less what was expected there.
ON_POLICY: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 1.0, "learning_rate": 1e-3}

# Adam with one kernel for all tensors: nearly half the time of a step of networks this small.
# DDPG, TD3 and SAC do without, since it rounds otherwise and their results are published.
FUSED: dict[str, Any] = {"optimizer_kwargs": {"fused": True}}
FUSED_ON: dict[str, Any] = {"optimizer_kwargs": {"fused": True, "eps": 1e-5}}  # SB3's eps for these


@dataclass(frozen=True)
class Algorithm:
    """One way to learn: a class and its settings.

    Attributes:
        path: module and class.
        family: how it uses its experience: "off" replays a memory, "on" forgets after a lesson.
        settings: keyword arguments of the class that do not depend on the environment.
        noise: explores by noise that is added to its actions.
        actions: the kind of action it can take.
        rollout: episodes between two lessons; an off-policy agent learns after every one.
        minibatches: parts that a rollout is learned in; None if the class knows no parts.
        normalizes_one: the class divides advantages by their deviation even where a mini-batch
            has one step, and so none.
        own_settings: the class takes (env, seed, warmup) and chooses the rest itself: of the
            fields above, `actions` and `family` alone are for it. The others take
            Stable-Baselines3's arguments.
    """

    path: str
    family: Literal["off", "on"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    noise: bool = False
    actions: Literal["continuous", "discrete"] = "continuous"
    rollout: int = 1
    minibatches: int | None = 1
    normalizes_one: bool = False
    own_settings: bool = False


_NET = {"net_arch": [128, 128]}
_SMALL = {"net_arch": [64, 64]}

# DDPG, TD3 and SAC were chosen on seeds 100 to 102, which no published figure uses
ALGORITHMS: dict[str, Algorithm] = {
    "ddpg": Algorithm(
        "stable_baselines3.DDPG",
        "off",
        {**SHARED, "learning_rate": 1e-3, "policy_kwargs": _NET},
        noise=True,
    ),
    "td3": Algorithm(
        "stable_baselines3.TD3",
        "off",
        {**SHARED, "learning_rate": 3e-4, "policy_kwargs": _NET},
        noise=True,
    ),
    "sac": Algorithm(
        "stable_baselines3.SAC",
        "off",
        {**SHARED, "learning_rate": 3e-4, "policy_kwargs": _NET},
    ),
    "tqc": Algorithm(
        "sb3_contrib.TQC",
        "off",
        {**SHARED, "learning_rate": 3e-4, "policy_kwargs": {**_NET, **FUSED}},
    ),
    "crossq": Algorithm(
        "sb3_contrib.CrossQ",
        "off",
        {**EPISODIC, "learning_rate": 1e-3, "policy_kwargs": {**_NET, **FUSED}},
    ),
    "dqn": Algorithm(
        "stable_baselines3.DQN",
        "off",
        {
            **SHARED,
            "learning_rate": 1e-3,
            "target_update_interval": 1,  # by tau, as the others
            "exploration_fraction": 0.5,  # of all episodes, then one decision in fifty at random
            "exploration_final_eps": 0.02,
            "policy_kwargs": {**_NET, **FUSED},
        },
        actions="discrete",
    ),
    "ppo": Algorithm(
        "stable_baselines3.PPO",
        "on",
        # few and large updates, because every episode is an evaluation: two mini-batches a pass,
        # and the first actions spread by 0.4 around those of doing nothing
        {
            **ON_POLICY,
            "learning_rate": 5e-3,
            "policy_kwargs": {**_SMALL, "log_std_init": -1.0, **FUSED_ON},
        },
        rollout=10,
        minibatches=2,
    ),
    "a2c": Algorithm(
        "stable_baselines3.A2C",
        "on",
        {
            **ON_POLICY,
            "learning_rate": 3e-3,  # one update for each rollout, where PPO has dozens
            "use_rms_prop": False,
            "policy_kwargs": {**_SMALL, "log_std_init": -0.5, **FUSED_ON},
        },
        minibatches=None,
    ),
    "maskable-ppo": Algorithm(
        "sb3_contrib.MaskablePPO",
        "on",
        {**ON_POLICY, "ent_coef": 0.01, "policy_kwargs": {**_SMALL, **FUSED_ON}},
        actions="discrete",
        rollout=4,
        minibatches=4,
        normalizes_one=True,
    ),
    "haq-ddpg": Algorithm("haq_env.agents.haq_ddpg.HaqDDPG", "off", own_settings=True),
}


def check_fits(name: str, env: QuantizationEnv) -> None:
    """Raise InputError for an unknown algorithm, and for one that cannot act in the environment."""
    if name not in ALGORITHMS:
        raise unknown_name("algorithm", name, ALGORITHMS)
    wanted = ALGORITHMS[name].actions
    if wanted == ("discrete" if isinstance(env.action_space, Discrete) else "continuous"):
        return
    how = "without '-Discrete'" if wanted == "continuous" else "with '-Discrete'"
    raise InputError(
        f"{name} needs {wanted} actions, but this environment has {env.action_space}: "
        f"take the id {how}."
    )


def make_agent(
    name: str, env: QuantizationEnv, seed: int, warmup: int, **overrides: Any
) -> BaseAlgorithm:
    """Build an agent that has not learned anything.

    Args:
        name: one of `ALGORITHMS`.
        env: the environment, with the kind of actions that the algorithm takes.
        seed: of the networks, the exploration and the memory.
        warmup: episodes of random actions; on-policy agents have none.
        **overrides: keyword arguments of the algorithm's class in place of those chosen here.

    Raises:
        InputError: unknown algorithm or setting, or actions of the other kind.
    """
    check_fits(name, env)
    algorithm = ALGORITHMS[name]
    module, _, attribute = algorithm.path.rpartition(".")
    agent_class = getattr(importlib.import_module(module), attribute)
    for override in overrides:
        if override not in inspect.signature(agent_class).parameters:
            raise InputError(f"{name} has no setting {override!r}.")
    if "learning_starts" in overrides:
        raise InputError(f"learning_starts of {name}: give the episodes of warm-up instead.")
    if algorithm.own_settings:
        own: BaseAlgorithm = agent_class(env, seed=seed, warmup=warmup, **overrides)
        return own
    settings = _by_length(algorithm, len(env.task.space.steps), warmup) | dict(algorithm.settings)
    if algorithm.noise:
        from haq_env.agents.noise import FadingNoise

        settings["action_noise"] = FadingNoise(1, SIGMA, DECAY, warmup, seed)
    if "n_steps" in overrides:  # off-policy: SB3's own memory then
        settings.pop("replay_buffer_class", None)
    # the class may write into what it is given, which must not reach the next agent
    settings["policy_kwargs"] = dict(settings["policy_kwargs"])
    summed = "replay_buffer_class" in settings and "replay_buffer_class" not in overrides
    if summed and overrides.get("gamma", 1.0) != 1:
        raise InputError(
            f"gamma of {name}: its memory sums whole episodes, so nothing is discounted. Give "
            "replay_buffer_class=ReplayBuffer (of stable_baselines3.common.buffers) as well."
        )
    agent: BaseAlgorithm = agent_class(
        "MlpPolicy", env, **{"seed": seed, "device": "cpu", **settings, **overrides}
    )
    _check_whole_episodes(name, agent, len(env.task.space.steps))
    return agent


def _by_length(algorithm: Algorithm, steps: int, warmup: int) -> dict[str, Any]:
    """Return the settings that follow from the number of steps in an episode."""
    if algorithm.family == "off":
        from haq_env.agents.replay import EpisodeMemory

        return {
            "replay_buffer_class": EpisodeMemory,
            "buffer_size": MEMORY * steps,
            "learning_starts": warmup * steps,
        }
    settings: dict[str, Any] = {"n_steps": algorithm.rollout * steps}
    if algorithm.minibatches is not None:
        settings["batch_size"] = max(2, algorithm.rollout * steps // algorithm.minibatches)
    if algorithm.normalizes_one and steps == 1:  # a rest of the rollout may be one step
        settings["normalize_advantage"] = False
    return settings


def _check_whole_episodes(name: str, agent: Any, steps: int) -> None:
    # a run is written down and counted between episodes
    if ALGORITHMS[name].family == "on":
        if agent.n_steps % steps:
            raise InputError(
                f"n_steps of {name} must be a multiple of the {steps} steps of an episode, not "
                f"{agent.n_steps}."
            )
    elif (agent.train_freq.frequency, agent.train_freq.unit.value) != (1, "episode"):
        raise InputError(f"train_freq of {name} must be (1, 'episode').")
