"""HAQ's replay buffer: shared rewards, a moving baseline (Wang et al., CVPR 2019, section 3.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from haq_env.agents.haq_switches import HaqSwitches
from haq_env.policy import MAX_BITS

PREVIOUS = 9  # number of the observation that tells the bits decided last


class HaqReplayBuffer(ReplayBuffer):
    """A ring of steps in which every finished episode learns its final reward.

    Never sample while an episode is open: its steps have not been told yet.

    Args:
        steps: decisions (layer, side) of an episode, in order.
        bits: smallest and largest width.
        switches: of them, those about baseline, reward, stored actions and replacement.
        *args: of SB3's ReplayBuffer.
        **kwargs: of SB3's ReplayBuffer.
    """

    def __init__(
        self,
        *args: Any,
        steps: tuple[tuple[int, int], ...],
        bits: tuple[int, int],
        switches: HaqSwitches,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._steps, self._bits, self._switches = steps, bits, switches
        self.baseline: float | None = None

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store a step; the last one of an episode completes those before it."""
        super().add(obs, next_obs, action, reward, done, infos)
        if not done[0]:
            return
        count = len(self._steps)
        slots = (self.pos - count + np.arange(count)) % self.buffer_size
        if self._switches.reward == "shared":
            self.rewards[slots] = reward
        if self._switches.stored_actions == "executed":
            self._store_executed(slots, infos[0]["policy"])
        if self._switches.baseline == "reward":
            self._move_baseline(float(reward[0]))

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Draw a mini-batch; the baseline is already subtracted from its rewards."""
        filled = self.buffer_size if self.full else self.pos
        if self._switches.replacement or filled < batch_size:
            chosen = np.random.randint(filled, size=batch_size)  # noqa: NPY002  # as SB3 does
        else:
            chosen = np.random.permutation(filled)[:batch_size]  # noqa: NPY002
        samples = self._get_samples(chosen, env)
        if self._switches.baseline == "batch":
            self._move_baseline(float(samples.rewards.mean()))
        if self.baseline is None:
            return samples
        return samples._replace(rewards=samples.rewards - self.baseline)

    def _move_baseline(self, value: float) -> None:
        if self.baseline is None:
            self.baseline = value
        else:
            self.baseline += self._switches.baseline_rate * (value - self.baseline)

    def _store_executed(self, slots: NDArray[np.int_], policy: list[list[int]]) -> None:
        low, high = self._bits
        bits = np.array([policy[layer][side] for layer, side in self._steps], dtype=np.float32)
        middles = (bits - low + 0.5) / (high - low + 1) * 2 - 1  # of the bins of the action
        self.actions[slots, 0, 0] = middles
        self.next_observations[slots, 0, PREVIOUS] = bits / MAX_BITS
        self.observations[slots[1:], 0, PREVIOUS] = bits[:-1] / MAX_BITS
