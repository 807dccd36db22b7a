"""The search as corrections of a sensitivity table: no action is projected away."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from haq_env.cost import Grid
from haq_env.env import Action, Observation, QuantizationEnv
from haq_env.errors import InputError, unknown_name
from haq_env.policy import ACTIVATION, MAX_BITS, WEIGHT, Bits
from haq_env.search.charge import Charge
from haq_env.search.lagrangian import allocate
from haq_env.search.table import LAW, law
from haq_env.space import Step
from haq_env.task import Task

# An action of 1 makes a tensor exp(reach) times as sensitive: a table that was measured is trusted
# within a factor of 2.7, the law, which knows nothing, within 7.4. With a smaller reach three of
# four policies of a search were repetitions.
REACH, REACH_OF_LAW = 1.0, 2.0
WAVES = 6  # sines and cosines of a layer's position, with periods of 2 to 1/16 of the network


class ResidualEnv(QuantizationEnv):
    """Correct what a sensitivity table says of every layer, and let a price choose the bits.

    ## Description

    The same problem as `QuantizationEnv`: two decisions at each layer, a hard budget, a reward
    after the last decision. But the agent does not choose bits. It says how much more or less
    sensitive a layer's weights or activations are than a table claims (residual actions). After
    the last decision every layer takes the pair of widths with the least corrected sensitivity
    plus price times cost, at the one price that just keeps the budget. Every policy is inside
    the budget by construction, nothing is projected, and doing nothing gives the policy that
    the table recommends, so the search starts about where an integer program ends.

    ## Action Space

    `Box(-1, 1, (1,), float32)`. Values outside are clipped to the box.

    | Num | Action | Min | Max |
    |-----|--------|-----|-----|
    | 0 | logarithm of the correction, as a share of `reach`; 0 trusts the table | -1 | 1 |

    ## Observation Space

    `Box(0, 1, (25,), float32)`. Numbers 0 to 8 are those of `QuantizationEnv`.

    | Num | Observation | Min | Max |
    |-----|-------------|-----|-----|
    | 0-7 | layer embedding | 0 | 1 |
    | 8 | what is decided now: 0 weights, 1 activations | 0 | 1 |
    | 9 | previous correction, (action + 1) / 2 | 0 | 1 |
    | 10 | logarithm of the table's sensitivity at the table's own policy, scaled | 0 | 1 |
    | 11 | logarithm of the layer's cost at that policy, scaled | 0 | 1 |
    | 12 | bits of that policy, / 8 | 0 | 1 |
    | 13-24 | position: sines and cosines of the layer's index, in 6 octaves | 0 | 1 |

    The positions let a small network tell neighbouring layers apart, which the scaled index
    alone does not.

    ## Rewards

    As in `QuantizationEnv`.

    ## Starting State

    As in `QuantizationEnv`. The first reset of an environment measures the table, which takes
    the time of about 2 evaluations with finetuning, 20 without, and is reported in the attribute
    `charge` (`seconds` and `evaluations`; None before).

    ## Episode End

    As in `QuantizationEnv`.

    ## Information

    As in `QuantizationEnv`; `policy_requested` equals `policy`.

    ## Arguments

    Those of `QuantizationEnv` but `actions`, and:

    | Parameter | Type | Default | Description |
    |-----------|------|---------|-------------|
    | `prior` | str, array | None | what is corrected, see below |
    | `reach` | float | None | logarithm of the largest correction: 1, or 2 for the law |
    | `prior_seed` | int | 0 | of the images that a sensitivity is measured on |

    A prior is the name of a sensitivity (`"fit"`, `"output_kl"`, `"loss"`, `"hawq_v2"`,
    `"hawq"`), a table of your own, float64 [L, 2, 8], or `"law"`: 4^-bits for all tensors
    alike, which costs nothing. None is `"fit"` where the evaluator has a network, else `"law"`.

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        task: Task | None = None,
        *,
        prior: str | Grid | None = None,
        reach: float | None = None,
        prior_seed: int = 0,
        **settings: Any,
    ) -> None:
        if "actions" in settings:
            raise InputError("corrections are continuous: a residual environment has no 'actions'.")
        super().__init__(task, **settings)
        if reach is not None and not (isinstance(reach, (int, float)) and reach > 0):
            raise InputError(f"reach must be a positive number, not {reach!r}.")
        if prior is None:
            prior = "fit" if self.task.is_trained else LAW
        if isinstance(prior, str) and prior != LAW:
            from haq_env.search.sensitivity import METHODS

            if prior not in METHODS:
                raise unknown_name("prior", prior, (*METHODS, LAW))
        if not isinstance(prior, str):
            prior = _checked(prior, len(self.task.layers))
        known = not isinstance(prior, str) or prior != LAW
        self.prior, self.prior_seed = prior, prior_seed
        self.reach = float(reach or (REACH if known else REACH_OF_LAW))
        self.observation_space = spaces.Box(0.0, 1.0, (13 + 2 * WAVES,), np.float32)
        self._table: Grid | None = None
        self._corrections = np.zeros(self._lowest.shape)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start from the table's own policy; the first call measures the table."""
        if self._table is None:
            self._table = self._measured()
            try:
                self._start = self._chosen()
                self._context = self._described()
            except BaseException:
                self._table = None  # the next call measures it again, and says the same
                raise
        self._corrections[:] = 0.0
        _, info = super().reset(seed=seed, options=options)
        self._bits = self._start.copy()
        return self._observe(), info

    # -- how ----------------------------------------------------------------------------------

    def _decide(self, step: Step, action: Action) -> None:
        self._corrections[step] = min(max(self._number(action), -1.0), 1.0)

    def _complete(self) -> tuple[Bits, Bits]:
        bits = self._chosen()
        return bits, bits

    def _chosen(self) -> Bits:
        assert self._table is not None, "reset measures it"
        table = self._table * np.exp(self.reach * self._corrections)[..., None]
        pairs = table[:, WEIGHT, :, None] + table[:, ACTIVATION, None, :]
        return allocate(pairs, self.task.budget)

    def _measured(self) -> Grid:
        if not isinstance(self.prior, str):
            self.charge = Charge(0.0, 0.0)  # whoever gives a table knows what it took
            return self.prior
        if self.prior == LAW:
            found = law(self.task)
        else:
            from haq_env.search.sensitivity import measure_sensitivity

            found = measure_sensitivity(self.task, self.prior, self.prior_seed)
        self.charge = found.charge
        return found.table

    def _described(self) -> NDArray[np.float64]:
        """What the observation tells beside the layer embedding, float64 [L, 2, 3 + 2 WAVES]."""
        layers, sides = np.arange(len(self._start))[:, None], np.arange(2)
        budget = self.task.budget
        harm = self._table[layers, sides, self._start - 1]  # type: ignore[index]
        cost = budget.table.per_layer(self._start, budget.metric)
        angle = np.pi * 2.0 ** np.arange(WAVES) * np.linspace(0, 1, len(layers))[:, None]
        position = 0.5 + 0.5 * np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        columns = [_scaled(harm), np.repeat(_scaled(cost)[:, None], 2, axis=1)]
        columns.append(self._start / MAX_BITS)
        table = np.stack(columns, axis=-1)
        return np.concatenate([table, np.repeat(position[:, None], 2, axis=1)], axis=-1)

    def _observe(self) -> Observation:
        done = self._step >= len(self._space.steps)
        step = self._space.steps[-1 if done else self._step]
        previous = 0.0
        if self._step > 0:
            previous = self._corrections[self._space.steps[self._step - 1]]
        tail = (step.side, 0.5 + 0.5 * previous, *self._context[step])
        return np.concatenate([self._features[step.layer], tail]).astype(np.float32)


def _checked(prior: Any, layers: int) -> Grid:
    """Return a user's own table as float64 [layers, 2, 8]."""
    try:
        table = np.array(prior, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"a prior must be a name or numbers, not {prior!r}.") from error
    if table.shape != (layers, 2, MAX_BITS) or not (table >= 0).all():
        raise InputError(f"a prior table must be [layers, 2, 8] = [{layers}, 2, 8], 0 or more.")
    return table


def _scaled(values: Grid) -> Grid:
    """Bring logarithms into [0, 1], smallest to largest; zeros count as the smallest."""
    positive = values[values > 0]
    logs = np.log(np.maximum(values, positive.min() if positive.size else 1.0))
    span = np.ptp(logs)
    return np.asarray((logs - logs.min()) / (span if span > 0 else 1.0))
