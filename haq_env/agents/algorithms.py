"""The settings of every algorithm, in one place: one set for all environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.spaces import Box

from haq_env.errors import InputError, unknown_name

if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

    from haq_env.env import QuantizationEnv

WARMUP = 20  # episodes of random actions before the agent learns (HAQ's released code)
SIGMA, DECAY = 0.6, 0.99  # exploration in [-1, 1]; HAQ starts at 1.0

# The final reward is an n-step return (n = steps of the episode, gamma 1): every decision is
# told how the whole policy fared, as in HAQ, with nothing but SB3's own buffer. One update for
# each step, after the episode, batch 64, tau 0.01, 128 episodes of memory: HAQ's released code.
SHARED: dict[str, Any] = {
    "gamma": 1.0,
    "tau": 0.01,
    "batch_size": 64,
    "train_freq": (1, "episode"),
    "gradient_steps": -1,
}

# algorithm -> SB3's keyword arguments, beside the shared ones; chosen on seeds 100 to 102, which
# no published figure uses
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ddpg": {"learning_rate": 1e-3, "policy_kwargs": {"net_arch": [128, 128]}},
    "td3": {"learning_rate": 3e-4, "policy_kwargs": {"net_arch": [128, 128]}},
    "sac": {"learning_rate": 3e-4, "policy_kwargs": {"net_arch": [128, 128]}},
}


def check_fits(name: str, env: QuantizationEnv) -> None:
    """Raise InputError for an unknown algorithm, and for one that cannot act in the environment."""
    if name not in ALGORITHMS:
        raise unknown_name("algorithm", name, ALGORITHMS)
    if not isinstance(env.action_space, Box):
        raise InputError(
            f"{name} needs continuous actions, but this environment has {env.action_space}: "
            "take the id without '-Discrete'."
        )


def make_agent(name: str, env: QuantizationEnv, seed: int, warmup: int) -> OffPolicyAlgorithm:
    """Build an agent that has not learned anything.

    Args:
        name: one of `ALGORITHMS`.
        env: the environment, with continuous actions.
        seed: of the networks, the exploration and the memory.
        warmup: episodes of random actions.

    Raises:
        InputError: unknown algorithm, or discrete actions.
    """
    import stable_baselines3 as sb3

    from haq_env.agents.noise import FadingNoise

    check_fits(name, env)
    steps = len(env.task.space.steps)
    settings = {**SHARED, **ALGORITHMS[name]}
    if name != "sac":  # SAC explores by its own stochastic policy
        settings["action_noise"] = FadingNoise(1, SIGMA, DECAY, warmup, seed)
    agent: OffPolicyAlgorithm = getattr(sb3, name.upper())(
        "MlpPolicy",
        env,
        n_steps=steps,
        buffer_size=128 * steps,
        learning_starts=warmup * steps,
        seed=seed,
        device="cpu",
        **settings,
    )
    return agent
