"""HAQ's own agent on Stable-Baselines3's DDPG (Wang et al., CVPR 2019, section 3).

Where the paper and the code its authors released differ, a switch chooses (`HaqSwitches`). What a
policy becomes before it is measured (the order in which bits are taken away, which layers are
pinned, whether slack is spent) belongs to the environment: see `haq_env.budget` and its argument
``fill_up``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.utils import update_learning_rate

from haq_env.agents.haq_replay import PREVIOUS, HaqReplayBuffer
from haq_env.agents.haq_switches import HaqSwitches
from haq_env.env import Observation, QuantizationEnv
from haq_env.errors import InputError
from haq_env.residual import ResidualEnv

SIGMA, DECAY = 0.5, 0.99  # of the exploration, on HAQ's range [0, 1]; by episode
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
TAU, BATCH = 0.01, 64
FLAG = 8  # number of the observation that tells which side is decided now


class HaqView(gym.Wrapper[Observation, Any, Observation, Any]):
    """The environment as the released code shows it to its agent; rewards and rules are the same.

    Args:
        env: the environment.
        switches: of them, `flag_of_last_decision` and `stale_start`.
    """

    def __init__(self, env: QuantizationEnv, switches: HaqSwitches) -> None:
        super().__init__(env)
        self._switches = switches
        self._first: Observation = np.zeros(0, dtype=np.float32)
        self._flag, self._steps = 0.0, 0
        self.stale: tuple[float, float] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._first, self._steps = observation.copy(), 0
        self._flag = float(observation[FLAG])
        if self._switches.stale_start and self.stale is not None:
            observation[[FLAG, PREVIOUS]] = self.stale
        return observation, info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        decided, self._flag = self._flag, float(observation[FLAG])
        if self._switches.flag_of_last_decision:
            observation[FLAG] = decided
        same_layer = bool((observation[:FLAG] == self._first[:FLAG]).all())
        if self._steps == 1 and same_layer and not terminated:
            self.stale = (float(observation[FLAG]), float(observation[PREVIOUS]))
        return observation, float(reward), terminated, truncated, info


class HaqDDPG(DDPG):
    """DDPG as HAQ uses it: exploration, reward, baseline and learning rates are the paper's.

    Args:
        env: the environment, with continuous actions.
        seed: of the networks, the exploration and the memory.
        warmup: episodes of random actions, uniform over the range.
        switches: where paper and released code differ.
        policy_kwargs: further arguments of SB3's policy.
    """

    def __init__(
        self,
        env: QuantizationEnv,
        *,
        seed: int = 0,
        warmup: int = 20,
        switches: HaqSwitches | None = None,
        policy_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.switches = switches = switches or HaqSwitches()
        if switches.stored_actions == "executed" and isinstance(env, ResidualEnv):
            raise InputError(
                "stored_actions='executed' stores bits, and the actions of a residual environment "
                "are corrections of a table."
            )
        self.warmup = warmup
        self.view = HaqView(env, switches)
        space = env.task.space
        length = len(space.steps)
        counted = length if switches.memory == "step" else len({layer for layer, _ in space.steps})
        networks = {"net_arch": list(switches.hidden), "optimizer_kwargs": {"fused": True}}
        super().__init__(
            "MlpPolicy",
            self.view,
            buffer_size=128 * counted,
            learning_starts=(warmup + switches.inclusive_warmup) * length,
            batch_size=BATCH,
            tau=TAU,
            gamma=1.0,
            train_freq=(1, "episode"),
            gradient_steps=-1,
            replay_buffer_class=HaqReplayBuffer,
            replay_buffer_kwargs={
                "steps": tuple(space.steps),
                "bits": space.bits,
                "switches": switches,
            },
            policy_kwargs={**networks, **(policy_kwargs or {})},
            seed=seed,
            device="cpu",
        )

    def sigma(self, episode: int) -> float:
        """Return the exploration's standard deviation on [-1, 1], twice that on HAQ's [0, 1]."""
        return 2 * SIGMA * DECAY ** (episode - self.warmup)

    def carried(self) -> dict[str, Any]:
        """Return what a resumed run needs beside networks, memory and generators."""
        assert isinstance(self.replay_buffer, HaqReplayBuffer)
        return {"baseline": self.replay_buffer.baseline, "stale": self.view.stale}

    def carry(self, state: dict[str, Any]) -> None:
        """Put back what `carried` has returned."""
        assert isinstance(self.replay_buffer, HaqReplayBuffer)
        self.replay_buffer.baseline, self.view.stale = state["baseline"], state["stale"]

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.num_timesteps < learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert isinstance(self._last_obs, np.ndarray)
        assert isinstance(self.action_space, Box)
        mean, _ = self.predict(self._last_obs, deterministic=True)
        # a generator for every step: the exploration of a resumed run is the unbroken one's
        rng = np.random.default_rng([self.seed or 0, self.num_timesteps])
        sigma = self.sigma(self._episode_num)
        drawn = truncated_normal(self.policy.scale_action(mean), sigma, rng)
        return self.policy.unscale_action(drawn), drawn

    def _update_learning_rate(self, optimizers: Any) -> None:
        for optimizer, rate in zip(optimizers, (ACTOR_RATE, CRITIC_RATE), strict=True):
            update_learning_rate(optimizer, rate)


def truncated_normal(
    mean: NDArray[np.float32], sigma: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw from the normal distribution around means in [-1, 1], cut off at -1 and 1.

    What falls outside is drawn again, so that nothing piles up at the ends. At least about half
    of the draws are kept for the standard deviations of `HaqDDPG.sigma`, which are at most 1.
    """
    drawn = rng.normal(mean, sigma)
    while (outside := np.abs(drawn) > 1).any():
        drawn[outside] = rng.normal(mean[outside], sigma)
    return np.asarray(drawn, dtype=np.float32)
