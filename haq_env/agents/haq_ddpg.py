"""HAQ's own agent on Stable-Baselines3's DDPG (Wang et al., CVPR 2019, section 3).

Where the paper and the code its authors released differ, a switch chooses. What a policy becomes
before it is measured (the order in which bits are taken away, which layers are pinned, whether
slack is spent) belongs to the environment: see `haq_env.budget` and its argument ``fill_up``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import update_learning_rate

from haq_env.env import Observation, QuantizationEnv
from haq_env.errors import InputError
from haq_env.policy import MAX_BITS
from haq_env.residual import ResidualEnv

SIGMA, DECAY = 0.5, 0.99  # of the exploration, on HAQ's range [0, 1]; by episode
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
TAU, BATCH = 0.01, 64
FLAG, PREVIOUS = 8, 9  # what the observation's numbers are called here


@dataclass(frozen=True)
class HaqSwitches:
    """What the paper and its released code do differently, one field for each departure.

    The defaults are the paper's, but for the layer sizes; where it is silent, the code's.
    Sections are those of the paper (arXiv 1811.08886), files those of
    github.com/mit-han-lab/haq.

    Attributes:
        hidden: sizes of the hidden layers of actor and critic. The paper has (400, 300) (section
            4), the code (300, 300) (``rl_quantize.py``: --hidden1 --hidden2), which is the default
            here too, since it is what the published searches ran with.
        inclusive_warmup: one episode of random actions more than was asked for, because the code
            tests ``episode <= warmup`` (``rl_quantize.py``); the exploration fades from the
            number asked for all the same.
        baseline: what is subtracted from the reward. "reward": the moving average of all earlier
            final rewards (section 3.4). "batch": that of the means of the mini-batches, which
            moves at every update (``ddpg.py``). "none": nothing.
        baseline_rate: weight in (0, 1] of the newest number in that average. The code has 0.5,
            the paper does not say.
        reward: who is rewarded. "shared": the final reward is written to every step of the
            episode (both). "terminal": to the last step alone.
        stored_actions: what the memory keeps. "requested": what the agent asked for, although
            the reward is that of the policy after the projection (both). "executed": the policy
            that was measured; on a synthetic task the agent then fell back to uniform policies.
        replacement: a mini-batch may hold a step twice. The code draws without (``memory.py``).
        memory: how many steps are remembered: 128 for each "step" of an episode, or for each
            "layer" (``rl_quantize.py``: --rmsize), which is half as many episodes where weights
            and activations are decided in turn.
        flag_of_last_decision: number 8 of the observation tells what was decided last instead of
            what is decided now, but for the first step (``linear_quantize_env.py``).
        stale_start: from the second episode on, the first observation keeps numbers 8 and 9
            from when the episode before was at the activations of that layer, since ``reset``
            does not put them back (``linear_quantize_env.py``).
    """

    hidden: tuple[int, int] = (300, 300)
    inclusive_warmup: bool = False
    baseline: Literal["reward", "batch", "none"] = "reward"
    baseline_rate: float = 0.5
    reward: Literal["shared", "terminal"] = "shared"
    stored_actions: Literal["requested", "executed"] = "requested"
    replacement: bool = False
    memory: Literal["step", "layer"] = "step"
    flag_of_last_decision: bool = False
    stale_start: bool = False

    def __post_init__(self) -> None:
        """Refuse what no field can mean."""
        choices = {
            "baseline": ("reward", "batch", "none"),
            "reward": ("shared", "terminal"),
            "stored_actions": ("requested", "executed"),
            "memory": ("step", "layer"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}."
                )
        if not 0 < self.baseline_rate <= 1:
            raise InputError(f"baseline_rate must lie in (0, 1], not {self.baseline_rate}.")
        if len(self.hidden) != 2 or min(self.hidden) < 1:
            raise InputError(f"hidden must be two sizes of 1 or more, not {self.hidden}.")

    @classmethod
    def released(cls) -> HaqSwitches:
        """Return what the released code does."""
        return cls(
            inclusive_warmup=True,
            baseline="batch",
            memory="layer",
            flag_of_last_decision=True,
            stale_start=True,
        )

    def changed(self) -> dict[str, Any]:
        """Return the switches that differ from the defaults, by name."""
        defaults = HaqSwitches()
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) != getattr(defaults, each.name)
        }


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


class EpisodeBuffer(ReplayBuffer):
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
            replay_buffer_class=EpisodeBuffer,
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
        assert isinstance(self.replay_buffer, EpisodeBuffer)
        return {"baseline": self.replay_buffer.baseline, "stale": self.view.stale}

    def carry(self, state: dict[str, Any]) -> None:
        """Put back what `carried` has returned."""
        assert isinstance(self.replay_buffer, EpisodeBuffer)
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
