"""The Markov decision process of HAQ, and nothing else."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from haq_env.embedding import Scales, embed
from haq_env.errors import InputError, unknown_name
from haq_env.make import make_task
from haq_env.policy import MAX_BITS, WEIGHT, Bits
from haq_env.space import Step
from haq_env.task import Task

if TYPE_CHECKING:
    from haq_env.search.charge import Charge

Observation = NDArray[np.float32]
Action = NDArray[np.float32] | int


class QuantizationEnv(gym.Env[Observation, Any]):
    """Choose the bits of every layer of a network so that it stays accurate inside a budget.

    ## Description

    The agent walks through the layers of a trained network in execution order and decides twice
    at each: the bits of the layer's weights, then the bits of its input activations. The first
    and the last layer stay at 8 bits and are skipped. After the last decision the policy is
    projected onto a hard budget of latency, energy or size, which a hardware simulator computes;
    the network is quantized by it, finetuned for a few steps (28 of 32 images, unless another
    evaluator is asked for) and measured on held-out images.
    The problem and its rules are those of HAQ (Wang et al., CVPR 2019).

    ## Action Space

    `Box(-1, 1, (1,), float32)`. Its bins have equal width: with bits 2 to 8, one seventh each.
    Values outside are clipped to the box.

    | Num | Action | Min | Max |
    |-----|--------|-----|-----|
    | 0 | bits of this step: smallest at -1, largest at 1 | -1 | 1 |

    With `actions="discrete"` it is `Discrete(n)`: action i means "smallest width + i" bits, and
    `env.unwrapped.action_masks()` tells which actions leave the budget reachable.

    ## Observation Space

    `Box(0, 1, (10,), float32)`: the layer embedding. Numbers 0 to 6 are scaled by the largest
    and smallest value in the network, or by given `scales`; where all layers are equal they are 0.

    | Num | Observation | Min | Max |
    |-----|-------------|-----|-----|
    | 0 | index of the layer | 0 | 1 |
    | 1 | input channels (features of a linear layer) | 0 | 1 |
    | 2 | output channels | 0 | 1 |
    | 3 | kernel size | 0 | 1 |
    | 4 | stride (0 for a linear layer) | 0 | 1 |
    | 5 | size of the input feature map, height x width (features of a linear layer) | 0 | 1 |
    | 6 | number of weights | 0 | 1 |
    | 7 | 1 for a depthwise convolution | 0 | 1 |
    | 8 | what is decided now: 0 weights, 1 activations | 0 | 1 |
    | 9 | previous decision, in bits / 8 | 0 | 1 |

    ## Rewards

    0 until the last step; then `0.1 * (accuracy - float_accuracy)`, in percentage points of
    top-1 on held-out images that are neither trained on nor the test set. The cost is not part
    of the reward, since the budget is hard: a policy that is too expensive loses bits from the
    last layer to the first (activations before weights) until it fits, and slack that is left
    goes to the smallest widths (`fill_up`).

    ## Starting State

    The first layer that is searched, its weights first; the previous decision counts as 8 bits.
    Nothing is random: `seed` of `reset` has no influence.

    ## Episode End

    Termination: after the last decision, two for each searched layer (one with
    `quantizer="kmeans"`). Truncation: never.

    ## Information

    Every `info` has `layer` (name) and `side` ("weights" or "activations") of the decision to
    come; the last one those of the last decision. It has also `policy` (pairs of weight and
    activation bits for all layers), `policy_requested` (before the projection), `accuracy`,
    `float_accuracy` (percent), `cost`, `cost_ratio` (to the 8-bit network), `budget` (the limit,
    in the unit of the cost), `seconds`, `cache_hit` (this policy was measured before),
    `stopped_early` (the accuracy is an estimate, see the argument `early_stopping`) and `note`
    (why floating point measured it although integers were allowed, or why no CUDA graphs did;
    mostly nothing).

    ## Arguments

    | Parameter | Type | Default | Description |
    |-----------|------|---------|-------------|
    | `task` | Task | None | of `QuantizationEnv(task)`: excludes `network` to `graphs` |
    | `network` | str, Module | `"mobilenet_v1"` | name with bundled weights, or a trained module |
    | `dataset` | str, Dataset | `"digits"` | images to finetune on and to measure with |
    | `hardware` | str, path, object | by id | name, TOML/JSON/CSV file, or your own class |
    | `metric` | str | by id | `"latency"`, `"energy"`, `"size"`, ... |
    | `budget` | float, str | by id | share in (0, 1] of the 8-bit cost, or `"w4a4"` |
    | `bits` | (int, int) | by id | smallest and largest width, within 1 to 8 |
    | `pinned` | sequence of int or str | (0, -1) | layers that stay at 8 bits, by index or name |
    | `quantizer` | str | by id | `"linear"`, `"kmeans"` (weights only) or `"lsq"` (learned steps) |
    | `clip` | str | `"mse"` | clips, or where steps start; or `"haq-kl"` (HAQ), `"max"`, `"lsq"` |
    | `evaluator` | str, Recipe, Evaluator | `"finetune"` | or `"ptq_bn"`: no finetuning |
    | `seed` | int | 0 | of the finetuning inside every evaluation |
    | `fill_up` | bool | True | spend the slack that the projection leaves |
    | `checkpoint` | path | None | safetensors weights of a named network |
    | `layers` | LayerTable | None | for a network that cannot be traced |
    | `device` | str | `"cpu"` | torch device of the evaluator |
    | `cache` | path | None | SQLite file that keeps answers for other processes and later runs |
    | `workers` | int | 1 | processes that measure a batch of policies side by side |
    | `reuse` | float | 512 | MB of activations kept for policies that begin alike (`"ptq_bn"`) |
    | `early_stopping` | float | None | chance of error at which a worse candidate is stopped |
    | `inference` | str | `"float"` | `"int8"`: measure accuracy on integer kernels; or `"auto"` |
    | `graphs` | str | `"auto"` | CUDA graphs on a CUDA device: where faster, `"on"` or `"off"` |
    | `actions` | str | `"continuous"` | or `"discrete"` |
    | `scales` | two lists | None | scales of the embedding, for an agent from another network |
    | `render_mode` | str | None | `"ansi"` or `"rgb_array"` |

    ## Version History

    * v0: first version.
    """

    charge: Charge | None = None  # what was computed before the first episode; None for nothing
    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012  # as Env has it

    def __init__(
        self,
        task: Task | None = None,
        *,
        actions: Literal["continuous", "discrete"] = "continuous",
        scales: Sequence[Sequence[float]] | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if task is not None and settings:
            raise InputError(
                f"give a task or {', '.join(settings)}, not both. An id of gym.make has settings "
                f"of its own: a task goes to {type(self).__name__}(task)."
            )
        _check_names(settings)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise unknown_name("render_mode", str(render_mode), self.metadata["render_modes"])
        self._made_task = task is None
        self.task = make_task(**settings) if task is None else task
        self.render_mode = render_mode
        self._space = self.task.space
        low, high = self._space.bits
        if actions == "continuous":
            self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        elif actions == "discrete":
            self.action_space = spaces.Discrete(high - low + 1)
        else:
            raise InputError(f"actions must be 'continuous' or 'discrete', not {actions!r}.")
        self.observation_space = spaces.Box(0.0, 1.0, (10,), np.float32)
        self.scales = Scales.of(self.task.layers) if scales is None else Scales.read(scales)
        self._features = embed(self.task.layers, self.scales)
        self._lowest, self._highest = self._space.lowest, self._space.highest
        self._bits = self._highest.copy()
        self._step = len(self._space.steps)  # an episode starts with reset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start with nothing decided: every layer at its largest width."""
        super().reset(seed=seed)
        self._bits = self._highest.copy()
        self._step = 0
        return self._observe(), self._info()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Set the bits of one side of one layer; after the last one, project and evaluate."""
        if self._step >= len(self._space.steps):
            raise gym.error.ResetNeeded("the episode is over (or never began): call reset() first.")
        self._decide(self._space.steps[self._step], action)
        self._step += 1
        if self._step < len(self._space.steps):
            return self._observe(), 0.0, False, False, self._info()
        requested, self._bits = self._complete()
        result = self.task.evaluate(self._bits)
        info = self._info() | {
            "policy": self._bits.tolist(),
            "policy_requested": requested.tolist(),
            "accuracy": result.accuracy,
            "cost": self.task.cost(self._bits),
            "cost_ratio": self.task.cost(self._bits) / self.task.budget.reference,
            "float_accuracy": self.task.float_accuracy,
            "budget": self.task.budget.limit,
            "seconds": result.seconds,
            "cache_hit": result.cache_hit,
            "stopped_early": result.stopped_early,
            "note": result.note,
        }
        return self._observe(), self.task.reward(result.accuracy), True, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Say which discrete actions leave the budget reachable, bool [n] (for MaskablePPO)."""
        if self._step >= len(self._space.steps):
            return np.ones(self._space.bits[1] - self._space.bits[0] + 1, dtype=bool)
        low, high = self._space.bits
        mask = self.task.budget.reachable(self._bits, self._step)
        return np.array(mask[low - 1 : high])

    def render(self) -> Any:
        """Draw the bits decided so far: a line of text or an image, by ``render_mode``."""
        from haq_env.report.render import ansi, rgb_array

        cost = self.task.cost(self._bits) / self.task.budget.limit
        if self.render_mode == "ansi":
            return ansi(self._bits, self._decided(), cost)
        if self.render_mode == "rgb_array":
            return rgb_array(self._bits, self._decided(), cost)
        return None

    def close(self) -> None:
        """End the worker processes of a task that this environment has made."""
        if self._made_task:
            self.task.close()

    # -- how ----------------------------------------------------------------------------------

    def _decide(self, step: Step, action: Action) -> None:
        """Take one decision."""
        bits = max(self._to_bits(action), self._lowest[step])
        self._bits[step] = min(bits, self._highest[step])  # a quantizer may have fewer widths

    def _complete(self) -> tuple[Bits, Bits]:
        """Return the policy that was asked for, and the one inside the budget."""
        return self._bits, self.task.project(self._bits)

    def _to_bits(self, action: Action) -> int:
        low, high = self._space.bits
        if isinstance(self.action_space, spaces.Discrete):
            if not self.action_space.contains(action):
                raise InputError(f"action must be an integer 0 to {high - low}, not {action!r}.")
            return low + int(action)
        return action_to_bits(self._number(action), low, high)

    @staticmethod
    def _number(action: Action) -> float:
        value = np.asarray(action)
        if value.shape != (1,):
            raise InputError(f"action must have the shape [1], not {list(value.shape)}.")
        if not np.isfinite(value[0]):
            raise InputError(f"action must be a number in [-1, 1], not {value[0]}.")
        return float(value[0])

    def _observe(self) -> Observation:
        done = self._step >= len(self._space.steps)
        layer, side = self._space.steps[-1 if done else self._step]
        previous = MAX_BITS
        if self._step > 0:
            previous = int(self._bits[self._space.steps[self._step - 1]])
        tail = (side, previous / MAX_BITS)
        return np.concatenate([self._features[layer], tail]).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        done = self._step >= len(self._space.steps)
        layer, side = self._space.steps[-1 if done else self._step]
        return {
            "layer": self.task.layers[layer].name,
            "side": "weights" if side == WEIGHT else "activations",
        }

    def _decided(self) -> NDArray[np.bool_]:
        decided = np.array(self._lowest == self._highest)  # pinned ones were never open
        for step in self._space.steps[: self._step]:
            decided[step] = True
        return decided


def action_to_bits(action: float, low: int, high: int) -> int:
    """Map an action in [-1, 1] to bits low to high, in bins of equal width.

    HAQ's ``round(low - 0.5 + a * (high - low + 1))`` rounds halves to even and so leaves the
    range at the ends for some ranges; this does not.
    """
    bins = high - low + 1
    return low + min(max(math.floor((action + 1) / 2 * bins), 0), bins - 1)


def _check_names(settings: Iterable[str]) -> None:
    """Refuse an argument that neither an environment nor a task has."""
    known = inspect.signature(make_task).parameters
    for name in settings:
        if name not in known:
            own = ("task", "actions", "scales", "render_mode")
            raise unknown_name("argument", name, (*known, *own))
