"""The problem to solve: layers + cost table + budget + evaluator.

Everything below (hardware, quantization, evaluation) knows nothing of search; everything above
(the environment, agents, baselines, the command line) sees only a `Task`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from haq_env.budget import Budget
from haq_env.cost import UNITS, CostTable
from haq_env.errors import InputError
from haq_env.evaluation import Evaluation, Evaluator, Remembering, Streaming
from haq_env.layers import LayerTable
from haq_env.policy import Bits, Policy, as_policy
from haq_env.space import BitSpace

if TYPE_CHECKING:
    from haq_env.evaluation.trained import TrainedEvaluator

REWARD_SCALE = 0.1  # HAQ's lambda: reward per percentage point of accuracy


@dataclass(frozen=True, eq=False)
class Task:
    """A mixed-precision quantization problem.

    Attributes:
        layers: the network, L layers.
        costs: what the hardware says of it.
        budget: the limit, with the projection onto it.
        space: which bits may be chosen, in which order.
        evaluator: policy -> accuracy.
        settings: the names it was made from, for records.
    """

    layers: LayerTable
    costs: CostTable
    budget: Budget
    space: BitSpace
    evaluator: Evaluator
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def float_accuracy(self) -> float:
        """Top-1 of the float network on the held-out images, in percent."""
        accuracy = self.evaluator.float_accuracy
        if not isinstance(accuracy, Real) or not 0 <= accuracy <= 100:
            raise InputError(
                f"{type(self.evaluator).__name__}: float_accuracy must be a percentage, 0 to 100, "
                f"not {accuracy!r}."
            )
        return float(accuracy)

    def reward(self, accuracy: float) -> float:
        """Return what an accuracy, in percent, is worth: 0 for that of the float network."""
        return REWARD_SCALE * (accuracy - self.float_accuracy)

    def project(self, bits: Bits | Policy) -> Bits:
        """Bring policies [..., L, 2] inside the budget."""
        return self.budget.project(self._mine(bits))

    def cost(self, bits: Bits | Policy) -> float:
        """Return the limited cost of one policy [L, 2], in the unit of the budget's metric.

        It is never above the limit for a policy that fits, although sums in another order can
        exceed it in the last digits.
        """
        bits = as_policy(self._mine(bits), len(self.layers))
        cost = float(self.budget.cost(bits))
        return min(cost, self.budget.limit) if self.budget.fits(bits) else cost

    def all_costs(self, bits: Bits | Policy) -> dict[str, float]:
        """Return every cost that the hardware has a model of, by metric."""
        bits = self._mine(bits)
        costs = {metric: float(self.costs.cost(bits, metric)) for metric in self.costs.values}
        return {**costs, self.budget.metric: self.cost(bits)}

    def evaluate(self, bits: Bits | Policy) -> Evaluation:
        """Measure the accuracy of one policy [L, 2].

        Raises:
            InputError: no policy of this network; or an evaluator of the user's own answers
                something else than an `Evaluation`.
        """
        # a copy: an evaluator of the user's own may write into it
        apart = as_policy(self._mine(bits), len(self.layers)).copy()
        return self._checked(self.evaluator.evaluate(apart), "return")

    def evaluate_batch(self, policies: Bits | Sequence[Bits | Policy]) -> list[Evaluation]:
        """Measure the accuracy of policies [N, L, 2]; in order, as one by one."""
        return list(self.evaluate_each(policies))

    def evaluate_each(self, policies: Bits | Sequence[Bits | Policy]) -> Iterator[Evaluation]:
        """Measure policies [N, L, 2] as `evaluate_batch` does; yield the answers as they come.

        A search that writes each of them down at once loses none when it is killed.
        """
        if isinstance(self.evaluator, Streaming):
            answers = self.evaluator.evaluate_each([np.array(self._mine(p)) for p in policies])
            return (self._checked(answer, "yield") for answer in answers)
        return (self.evaluate(bits) for bits in policies)

    def _checked(self, answer: object, how: str) -> Evaluation:
        if not isinstance(answer, Evaluation):
            name = f"{type(self.evaluator).__name__}.evaluate{'_each' * (how == 'yield')}"
            raise InputError(f"{name} must {how} a haq_env.Evaluation, not {answer!r}.")
        accuracy = answer.accuracy
        # NaN would be the best one for ever
        if not isinstance(accuracy, Real) or not 0 <= accuracy <= 100:
            raise InputError(
                f"{type(self.evaluator).__name__}: an accuracy must be a percentage, 0 to 100, not "
                f"{accuracy!r}."
            )
        return answer

    def _mine(self, bits: Bits | Policy) -> Bits:
        """Return the bits of a policy, having seen that it is for these layers."""
        if not isinstance(bits, Policy):
            return bits
        if bits.names != self.layers.names:
            raise InputError(f"the policy is for other layers than {self.layers.network!r} has.")
        return bits.bits

    def remember(self, bits: Bits, accuracy: float) -> None:
        """Tell the evaluator an answer it gave in an earlier run, if it keeps answers."""
        if isinstance(self.evaluator, Remembering):
            self.evaluator.remember(bits, accuracy)

    @property
    def is_trained(self) -> bool:
        """Whether accuracies are those of a trained network that can be finetuned here."""
        from haq_env.evaluation.trained import TrainedEvaluator

        return isinstance(self.evaluator, TrainedEvaluator)

    def trained(self) -> TrainedEvaluator:
        """Return the evaluator with its network, for what needs weights, gradients or finetuning.

        Raises:
            InputError: it is an evaluator of the user's own, which shows no network.
        """
        from haq_env.evaluation.trained import TrainedEvaluator

        if not isinstance(self.evaluator, TrainedEvaluator):
            raise InputError(
                f"this needs a network that is finetuned here, and {type(self.evaluator).__name__} "
                "is an evaluator of its own: give make_task a network and the name of a tier."
            )
        return self.evaluator

    def close(self) -> None:
        """End the evaluator's worker processes, if it has any; the next batch starts new ones."""
        close = getattr(self.evaluator, "close", None)
        if callable(close):
            close()

    def uniform(self) -> Bits:
        """Return the best that needs no search: the largest uniform policy that fits."""
        return self.budget.uniform()

    def policy(self, bits: Bits | Policy, **record: Any) -> Policy:
        """Put names and the task's settings to bits, ready to be saved."""
        bits = self._mine(bits)
        budget = {
            "metric": self.budget.metric,
            "unit": UNITS[self.budget.metric],
            "limit": self.budget.limit,
            "ratio": self.budget.ratio,
        }
        about = {**self.settings, "input_shape": list(self.layers.input_shape), "budget": budget}
        if self.layers.uncounted:
            about["uncounted"] = list(self.layers.uncounted)
        about |= {"cost": self.all_costs(bits), **record}
        return Policy(bits, self.layers.names, about)
