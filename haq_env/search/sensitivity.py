"""How much each layer suffers at each width, measured on a network and training images."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from haq_env.cost import Grid
from haq_env.errors import InputError
from haq_env.evaluation.device import own_modes
from haq_env.evaluation.prefix import FloatSweep
from haq_env.networks.modes import evaluation_mode
from haq_env.policy import WEIGHT, Bits
from haq_env.quantization.layers import QuantLayer
from haq_env.quantization.network import QuantizedNetwork
from haq_env.registry import Registry
from haq_env.search.charge import Charge
from haq_env.search.history import History, begin
from haq_env.search.table import Sensitivity, search_with_table
from haq_env.task import Task

IMAGES = 256  # training images that tables are measured on
BATCH = 64


class Context(NamedTuple):
    """What a method measures with.

    Attributes:
        network: with its float weights, in float and evaluation mode.
        layers: its L layers.
        images: [N, C, H, W], for training.
        labels: int64 [N].
        allowed: bool [L, 2, 8], what the space allows.
        generator: for random probes, on the CPU.
    """

    network: QuantizedNetwork
    layers: list[QuantLayer]
    images: Tensor
    labels: Tensor
    allowed: NDArray[np.bool_]
    generator: torch.Generator

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk the images in batches of almost equal size."""
        parts = -(-len(self.images) // BATCH)
        yield from zip(
            self.images.tensor_split(parts), self.labels.tensor_split(parts), strict=True
        )


def measure_sensitivity(
    task: Task, method: str, seed: int = 0, images: int = IMAGES
) -> Sensitivity:
    """Measure a table on training images; the task's network is afterwards as it was.

    Args:
        task: with an evaluator that has a network, which is what ``evaluator="finetune"`` and
            ``"ptq_bn"`` make.
        method: a key of `METHODS`.
        seed: of the choice of images and of random probes.
        images: how many training images, or all if there are fewer.

    Raises:
        InputError: the method is unknown, there are no images, or the evaluator has no network.
    """
    evaluator = task.trained()
    harm = METHODS[method]
    if images < 1:
        raise InputError(f"a sensitivity needs one image or more, not {images}.")
    bench = evaluator.bench  # loading is no part of the charge: every search needs it
    train = bench.images["train"]
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    chosen = torch.from_numpy(np.sort(rng.permutation(len(train))[:images]))
    chosen = chosen.to(train.labels.device)
    with own_modes(), _float_network(bench.network) as layers:
        context = Context(
            bench.network,
            layers,
            train.batch(chosen),
            train.labels[chosen],
            task.space.allowed,
            torch.Generator().manual_seed(seed),
        )
        # the fast kernels of attention have no second derivative
        with sdpa_kernel(SDPBackend.MATH):
            table = _monotone(harm(context), task.space.allowed)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        bench.measure(task.uniform(), evaluator.recipe, evaluator.seed, ("val",))
        one = time.perf_counter() - start
    return Sensitivity(method, table, Charge(seconds, seconds / one))


def _monotone(raw: Grid, allowed: NDArray[np.bool_]) -> Grid:
    """Make a width as bad as the worst of those above it, and none better than harmless.

    A width that is infinitely bad cannot be used, which says nothing of those below it.
    """
    usable = allowed & np.isfinite(raw)
    table = np.where(usable, np.maximum(raw, 0.0), -np.inf)
    table = np.maximum.accumulate(table[:, :, ::-1], axis=2)[:, :, ::-1]
    return np.asarray(np.where(usable, table, np.inf))


@contextmanager
def _float_network(network: QuantizedNetwork) -> Iterator[list[QuantLayer]]:
    """Lend a network in float and evaluation mode, with its pretrained weights."""
    policy = network.bits
    state = copy.deepcopy(network.state_dict())
    learned = copy.deepcopy(network.learned.state_dict())
    found = {m.slot.name: m for m in network.modules() if isinstance(m, QuantLayer)}
    frozen = [p for p in network.parameters() if not p.requires_grad]
    network.restore()
    network.float_mode()
    try:
        with evaluation_mode(network):
            yield [found[name] for name in network.layers.names]
    finally:
        network.load_state_dict(state)
        network.learned.load_state_dict(learned)
        network.weights_changed()
        network.set_policy(policy)
        for parameter in frozen:
            parameter.requires_grad_(False)


# -- tables: one side of one layer quantized, the rest in float ----------------------------------


def output_kl(context: Context) -> Grid:
    """KL(float || quantized) of the predicted probabilities, mean over images, in nats."""
    target = _log_probabilities(context)
    return _one_at_a_time(context, lambda q: float((target.exp() * (target - q)).sum(1).mean()))


def loss(context: Context) -> Grid:
    """Change of the cross-entropy, mean over images, in nats."""
    labels = context.labels[:, None]
    before = float(_log_probabilities(context).gather(1, labels).mean())
    return _one_at_a_time(context, lambda q: before - float(q.gather(1, labels).mean()))


def _one_at_a_time(context: Context, harm: Callable[[Tensor], float]) -> Grid:
    """Apply a measure to the log probabilities with each side of each layer at each width."""
    result = np.zeros(context.allowed.shape)
    sweep = FloatSweep(context.network, [images for images, _ in context.batches()])
    for index, side, width in np.argwhere(context.allowed).tolist():
        slot = context.layers[index].slot
        has = slot.widths[side]
        if width + 1 not in has:  # an empty range is that of activations that stay in float
            result[index, side, width] = np.inf if has else 0.0
            continue
        sweep.before(index)
        slot.w_bits, slot.a_bits = (width + 1, 0) if side == WEIGHT else (0, width + 1)
        try:
            with torch.no_grad():
                logits = torch.cat([one.double() for one in sweep.logits()])
            result[index, side, width] = harm(logits.log_softmax(dim=1))
        finally:
            slot.w_bits = slot.a_bits = 0
            slot.quantizer.reset()
    return result


def _log_probabilities(context: Context) -> Tensor:
    """Log of the softmax in float64 [images, classes]."""
    with torch.no_grad():
        logits = [context.network(images).double() for images, _ in context.batches()]
        return torch.cat(logits).log_softmax(dim=1)


METHODS: Registry[Callable[[Context], Grid]] = Registry(
    "sensitivity",
    {
        "output_kl": "haq_env.search.sensitivity:output_kl",
        "loss": "haq_env.search.sensitivity:loss",
        "fit": "haq_env.search.hessian:fit",
        "hawq_v2": "haq_env.search.hessian:hawq_v2",
        "hawq": "haq_env.search.hessian:hawq",
    },
)


# -- searches ----------------------------------------------------------------------------------


def from_table(
    task: Task,
    evaluations: int,
    seed: int,
    method: str,
    choose: Callable[[Task, Grid], Bits],
    history: History | None = None,
) -> History:
    """Measure a table, and search with it as `search_with_table` does.

    Args:
        task: with an evaluator that has a network.
        evaluations: policies to measure; what the table takes is told apart, by `charge`.
        seed: of the table and of the variations.
        method: a key of `METHODS`.
        choose: (task, table [L, 8, 8]) to a policy [L, 2] inside the budget.
        history: see `haq_env.search.history.begin`.

    Raises:
        InputError: fewer than one evaluation, or an evaluator without a network.
    """
    task.trained()
    history = begin(task, evaluations, history)
    if evaluations == 1:
        return history
    found = measure_sensitivity(task, method, seed)
    return search_with_table(task, evaluations, seed, found, choose, history)
