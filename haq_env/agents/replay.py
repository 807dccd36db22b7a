"""A replay memory in which every decision is told what its whole episode earned."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer


class EpisodeMemory(ReplayBuffer):
    """SB3's replay memory with the return of each step worked out once, as its episode ends.

    The same experience as SB3's `NStepReplayBuffer` gives with gamma 1 and as many steps as an
    episode has, to the bit, but summed once and not again for every mini-batch. Each transition
    leads from its step to the end of the episode, so targets are returns and nothing is
    bootstrapped. Episodes must be finished before anything is sampled.
    """

    _steps = 0  # of the episode that is being played

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Remember a step; at the last one of an episode, write its returns.

        Raises:
            ValueError: several environments at once, or an episode longer than the memory.
        """
        if self.n_envs != 1:
            raise ValueError(f"EpisodeMemory remembers one environment, not {self.n_envs}.")
        position = self.pos
        super().add(obs, next_obs, action, reward, done, infos)
        self._steps += 1
        if self._steps > self.buffer_size:
            raise ValueError(f"an episode has more than the {self.buffer_size} steps remembered.")
        if not done[0]:
            return
        episode = (position - np.arange(self._steps)) % self.buffer_size  # the last step first
        self.rewards[episode] = np.cumsum(self.rewards[episode], axis=0)
        self.next_observations[episode] = self.next_observations[position]
        self.dones[episode] = 1
        self._steps = 0
