"""Where HAQ's paper and the code its authors released differ: a switch for each departure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from haq_env.errors import InputError


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
