"""Exploration noise that fades from episode to episode."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.noise import ActionNoise


class FadingNoise(ActionNoise):
    """Normal noise, silent during the warm-up, then smaller with every episode (HAQ section 3).

    SB3 adds the noise to its random warm-up actions as well, which would pile them up at the
    ends of the range; hence the silence. Every episode has a generator of its own, so the noise
    of episode n is the same in a resumed run.

    Args:
        size: numbers in an action.
        sigma: standard deviation in the first episode after the warm-up; the range is [-1, 1].
        decay: factor for every further episode.
        warmup: episodes of random actions.
        seed: of the noise.
    """

    def __init__(self, size: int, sigma: float, decay: float, warmup: int, seed: int) -> None:
        super().__init__()
        self._size, self._sigma, self._decay = size, sigma, decay
        self._warmup, self._seed = warmup, seed
        self.start(0)

    def start(self, episode: int) -> None:
        """Begin at an episode; SB3 calls `reset` once more before it runs it."""
        self._episode = episode - 1
        self.reset()
        self._episode = episode - 1

    def reset(self) -> None:
        """Go on to the next episode."""
        self._episode += 1
        self._rng = np.random.default_rng([self._seed, max(self._episode, 0)])

    def __call__(self) -> NDArray[np.float32]:
        """Draw the noise of one action."""
        if self._episode < self._warmup:
            return np.zeros(self._size, dtype=np.float32)
        sigma = self._sigma * self._decay ** (self._episode - self._warmup)
        return self._rng.normal(0.0, sigma, self._size).astype(np.float32)
