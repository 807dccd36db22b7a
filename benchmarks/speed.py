"""How fast the product is against HAQ written down plainly, on this machine.

    python benchmarks/speed.py [--only evaluation] [--quick]

What is compared with is benchmarks/plain_haq.py, which says where each of its parts comes from,
and torch's eager float network in its default layout. Contenders take turns in one process, and a
ratio is the median over the turns of the ratios of processor time, one thread, so that other work
on the machine counts little; ratios of wall time stand beside them. Every section is written into
benchmarks/results/speed.md with the command that made it; --only replaces one section there, and
--quick, with smaller networks and fewer turns, writes nothing. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import inspect
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import plain_haq
import sklearn
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn
from torch.nn import functional as F

import haq_env
from haq_env.agents.algorithms import make_agent
from haq_env.agents.run import search_with_agent
from haq_env.data import Dataset, Split, load_dataset
from haq_env.env import QuantizationEnv
from haq_env.evaluation import RECIPES, Evaluation, Recipe
from haq_env.evaluation.bench import Subject
from haq_env.evaluation.cache import EvaluationCache
from haq_env.evaluation.finetune import Images, finetune
from haq_env.evaluation.stopping import EarlyStopping
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.layers import LayerTable
from haq_env.networks import load_network
from haq_env.networks.bundled import find_trained
from haq_env.networks.checkpoint import load_checkpoint
from haq_env.networks.trace import trace
from haq_env.policy import Bits
from haq_env.quantization.batchnorm import recalibrate_batchnorm
from haq_env.quantization.clustering import SortedValues
from haq_env.quantization.integer import IntegerNetwork
from haq_env.quantization.kernels import Unsupported
from haq_env.quantization.network import QuantizedNetwork
from haq_env.task import make_task

RESULTS = Path(__file__).parent / "results" / "speed.md"
HEAD = """# Speed

`python benchmarks/speed.py`, or `--only SECTION` for one of them. Ratios are of processor time,
medians of contenders that take turns; what is compared with is `benchmarks/plain_haq.py`.
"""
SEED, CLASSES, CPU = 0, 10, torch.device("cpu")
Section = Literal[
    "evaluation",
    "inference",
    "step",
    "episode",
    "search",
    "calibration",
    "kmeans",
    "overhead",
    "growth",
    "cuda",
]


@dataclass(frozen=True)
class Settings:
    """Measure the speed of the product against HAQ written down plainly."""

    only: Section | None = None
    """Run one section."""
    quick: bool = False
    """Smaller networks and fewer turns: under two minutes in all, not for the record."""
    episodes: int = 300
    """Of the section `search`."""


class Row(NamedTuple):
    """A figure; `met` is None where there is no target or nothing was measured."""

    figure: str
    target: str
    measured: str
    met: bool | None = None


class Net(NamedTuple):
    """A network with fresh weights, and the numbers of images that it is measured with."""

    name: str
    width: float
    size: int
    batch: int
    label: str
    bn: int = 128
    val: int = 2560
    calibration: int = 128

    def module(self) -> nn.Module:
        """Build it, with statistics of batch norm that keep the activations alive."""
        network = load_network(self.name, classes=CLASSES, image_size=self.size, width=self.width)
        recalibrate_batchnorm(network.eval(), self.images()[:16])
        return network

    def layers(self) -> LayerTable:
        """Trace it."""
        return trace(self.module(), (3, self.size, self.size), name=self.name)

    def data(self, train: int, val: int) -> Dataset:
        """Draw images of noise."""
        rng = np.random.default_rng(SEED)
        shape = (3, self.size, self.size)
        parts = [
            Split(
                rng.integers(0, 256, (count, *shape), dtype=np.uint8),
                rng.integers(0, CLASSES, count),
            )
            for count in (train, val, 1)
        ]
        return Dataset("noise", CLASSES, (0.5,) * 3, (0.25,) * 3, *parts)

    def images(self) -> Tensor:
        """Draw one batch, as the network takes it."""
        return torch.randn(
            self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(SEED)
        )


V1_QUARTER = Net("mobilenet_v1", 0.25, 32, 64, "MobileNet-V1 0.25, 32 px")
V1_HALF = Net("mobilenet_v1", 0.5, 32, 128, "MobileNet-V1 0.5, 32 px", 64, 1280)
V1 = Net("mobilenet_v1", 1.0, 32, 64, "MobileNet-V1 1.0, 32 px", 32, 640)
RESNET20 = Net("resnet20", 1.0, 32, 128, "ResNet-20, 32 px", 64, 1280)
V2 = Net("mobilenet_v2", 1.0, 224, 16, "MobileNet-V2 1.0, 224 px", 16, 320, 16)
NETS = (V1_QUARTER, V1_HALF, V1, RESNET20, V2)


# -- measuring ---------------------------------------------------------------------------------


class Times:
    """Processor and wall seconds of contenders that take turns."""

    def __init__(self, contenders: dict[str, Callable[[], Any]], turns: int) -> None:
        self.cpu: dict[str, list[float]] = {name: [] for name in contenders}
        self.wall: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(turns + 1):
            for name, run in contenders.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                if turn:  # the first one builds what is kept
                    self.cpu[name].append(time.process_time() - cpu)
                    self.wall[name].append(time.perf_counter() - wall)

    def ratio(self, name: str, other: str) -> float:
        """Median ratio of processor time, turn by turn."""
        return _median_ratio(self.cpu[name], self.cpu[other])

    def text(self, name: str, other: str) -> str:
        """The ratio, that of wall time, and the medians in milliseconds."""
        wall = _median_ratio(self.wall[name], self.wall[other])
        pair = " / ".join(
            f"{1000 * statistics.median(self.cpu[each]):.4g}" for each in (name, other)
        )
        return f"{self.ratio(name, other):.3g} (wall {wall:.3g}) = {pair} ms"

    def faster(self, figure: str, name: str, other: str, bound: float) -> Row:
        """One contender must be at least `bound` times as fast as another."""
        ratio = self.ratio(other, name)
        return Row(figure, f">= {bound:g} x", self.text(other, name), ratio >= bound)

    def at_most(self, figure: str, name: str, other: str, bound: float) -> Row:
        """One contender must take at most a share of another's time."""
        ratio = self.ratio(name, other)
        return Row(figure, f"<= {bound:g}", self.text(name, other), ratio <= bound)

    def told(self, figure: str, name: str, other: str) -> Row:
        """Show a ratio without a target."""
        return Row(figure, "", self.text(name, other))


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def policies(layers: LayerTable, seed: int = SEED) -> Iterator[Bits]:
    """Draw mixed policies, 2 to 8 bits, 8 in the first and in the last layer."""
    rng = np.random.default_rng(seed)
    while True:
        bits = rng.integers(2, 9, (len(layers), 2))
        bits[[0, -1]] = 8
        yield bits


def quantized(net: Net, images: Tensor) -> QuantizedNetwork:
    """The product's network under one mixed policy, ready for measuring."""
    network = QuantizedNetwork(net.module(), net.layers(), calibration_images=images)
    network.restore()
    network.set_policy(next(policies(net.layers())))
    return network


def plain(net: Net, images: Tensor) -> nn.Module:
    """The plain network under the same policy."""
    network, parts = plain_haq.plain_network(net.module(), net.layers())
    for part, (w_bits, a_bits) in zip(parts, next(policies(net.layers())).tolist(), strict=True):
        part.w_bits, part.a_bits, part.calibrating = w_bits, a_bits, True
    with torch.no_grad():
        network(images)
    for part in parts:
        part.calibrating = False
    return network


def no_gradient(network: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Any]:
    """A forward pass."""

    def run() -> None:
        with torch.no_grad():
            network(images)

    return run


# -- sections ----------------------------------------------------------------------------------


def evaluation(quick: bool, _: Settings) -> list[Row]:
    """One policy: clips, re-estimation of batch norm, validation; no finetuning.

    Twenty images are validated for every one that batch norm is re-estimated on: HAQ validates
    10,000, and the product re-estimates on 512. "int8" is the product's integer inference, "float"
    its default.
    """
    rows = []
    for net in (V1_QUARTER._replace(bn=32, val=640),) if quick else NETS:
        module, layers = net.module(), net.layers()
        data = net.data(max(net.bn, net.calibration), net.val)
        recipe = Recipe(steps=0, bn_images=net.bn)
        batch = min(128, net.batch)
        sides = {
            "plain": plain_haq.PlainEvaluator(
                module, layers, data, recipe, calibration=net.calibration, batch=batch
            ),
            "float": TrainedEvaluator(Subject(module, data, layers), recipe),
            "int8": TrainedEvaluator(Subject(module, data, layers, inference="int8"), recipe),
        }
        runs = {name: _each(side, policies(layers)) for name, side in sides.items()}
        times = Times(runs, 1 if quick else 3)
        about = f"{net.label}, {net.bn} re-estimated, {net.val} validated"
        bound = 5 if net is RESNET20 else 8
        rows.append(times.faster(f"{about}: plain / int8", "int8", "plain", bound))
        rows.append(times.told(f"{about}: plain / float", "plain", "float"))
    return rows


def _each(evaluator: Any, drawn: Iterator[Bits]) -> Callable[[], Any]:
    return lambda: evaluator.evaluate(next(drawn))


def inference(quick: bool, _: Settings) -> list[Row]:
    """A forward pass of one batch under a mixed policy, against the eager float network."""
    rows = []
    for net in NETS[:1] if quick else NETS:
        images = net.images()
        with torch.no_grad():
            network = quantized(net, images)
        runs = {
            "float": no_gradient(net.module(), images),
            "plain": no_gradient(plain(net, images), images),
            "ours": no_gradient(network, images),
        }
        small = net is not RESNET20
        try:
            runs["integer"] = no_gradient(IntegerNetwork.of(network), images)
            reason = ""
            runs["conversion"] = lambda n=network: IntegerNetwork.of(n)
        except Unsupported as error:
            reason = f"not available: {error}"
        times = Times(runs, 3 if quick else 9)
        about = f"{net.label}, batch {net.batch}"
        rows.append(times.told(f"{about}: plain / float", "plain", "float"))
        rows.append(times.at_most(f"{about}: ours / float", "ours", "float", 0.9 if small else 1.0))
        bound = 0.35 if small else 0.5
        figure = f"{about}: integer / float"
        if reason:
            rows.append(Row(figure, f"<= {bound:g}", reason))
        else:
            rows.append(times.at_most(figure, "integer", "float", bound))
            rows.append(
                times.told(f"{about}: conversion of a policy / float", "conversion", "float")
            )
    return rows


def step(quick: bool, _: Settings) -> list[Row]:
    """Finetuning: forward, backward, SGD, with the product's own loop and its gathering of data."""
    rows = []
    count = 2
    for net in (
        NETS[:1]
        if quick
        else (*NETS[:4], V2._replace(size=32, batch=64, label="MobileNet-V2 1.0, 32 px"))
    ):
        data = net.data(count * net.batch, 1)
        images = Images(data.train, data, CPU)
        batches = list(images.batches(net.batch))
        network = quantized(net, batches[0][0])
        recipe = Recipe(steps=count, batch_size=net.batch, learning_rate=1e-3)

        def loop(module: nn.Module, batches: Any = batches) -> Callable[[], None]:
            sgd = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.9, weight_decay=4e-5)
            module.train()

            def run() -> None:
                for pixels, labels in batches:
                    loss = F.cross_entropy(module(pixels), labels)
                    sgd.zero_grad()
                    loss.backward()
                    sgd.step()

            return run

        times = Times(
            {
                "float": loop(net.module()),
                "plain": loop(plain(net, batches[0][0])),
                "ours": lambda n=network, i=images, r=recipe: finetune(n, i, r, 0, n.after_step),
            },
            3 if quick else 5,
        )
        about = f"{net.label}, batch {net.batch}, {count} steps"
        rows.append(times.at_most(f"{about}: ours / float", "ours", "float", 1.0))
        rows.append(times.faster(f"{about}: plain / ours", "ours", "plain", 1.6))
    return rows


def digits() -> tuple[nn.Module, LayerTable, Dataset]:
    """The bundled network and its images."""
    found = find_trained("mobilenet_v1", "digits")
    module = load_network("mobilenet_v1", **dict(found.build))
    assert found.checkpoint is not None
    load_checkpoint(found.checkpoint, module)
    return module.eval(), found.layers, load_dataset("digits", **dict(found.dataset_options))


def contest(
    module: nn.Module, layers: LayerTable, data: Dataset, recipe: Recipe, turns: int
) -> tuple[Times, int]:
    """Episodes of both sides in turn, and how many of ours only looked an answer up."""

    def env(evaluator: Any) -> QuantizationEnv:
        return QuantizationEnv(
            make_task(module, data, "bismo-edge", layers=layers, budget="w3a2", evaluator=evaluator)
        )

    def theirs(batchnorm: bool) -> Callable[[], Any]:
        evaluator = plain_haq.PlainEvaluator(module, layers, data, recipe, batchnorm=batchnorm)
        return plain_haq.PlainDDPG(env(evaluator), SEED).episode

    own = env(TrainedEvaluator(Subject(module, data, layers), recipe))
    steps, hits = len(own.task.space.steps), []
    agent = make_agent("haq-ddpg", own, SEED, 1)

    def ours() -> None:
        agent.learn(steps, Hits(hits), reset_num_timesteps=False)

    times = Times({"plain": theirs(True), "as HAQ": theirs(False), "ours": ours}, turns)
    return times, sum(hits)


class Hits(BaseCallback):
    """Notes which episodes only looked their answer up."""

    def __init__(self, hits: list[bool]) -> None:
        super().__init__()
        self.hits = hits

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            self.hits.append(self.locals["infos"][0]["cache_hit"])
        return True


def episode(quick: bool, _: Settings) -> list[Row]:
    """Whole episodes: the agent acts and learns (haq-ddpg), a policy is measured."""
    small = V1_QUARTER.data(2048, 1024)
    subjects = {
        "bundled digits, 28 steps of 32": (*digits(), RECIPES["finetune"]),
        f"{V1_QUARTER.label}, 16 steps of 128, 1,024 validated": (
            V1_QUARTER.module(),
            V1_QUARTER.layers(),
            small,
            Recipe(steps=16, batch_size=128),
        ),
    }
    rows = []
    for label, subject in list(subjects.items())[: 1 if quick else 2]:
        times, hits = contest(*subject, turns=1 if quick else 5)
        note = f" ({hits} remembered)" if hits else ""
        rows.append(
            times.faster(f"{label}{note}: plain / ours, both re-estimate", "ours", "plain", 3)
        )
        rows.append(
            times.told(f"{label}: plain without re-estimation / ours with", "as HAQ", "ours")
        )
    return rows


def search(quick: bool, settings: Settings) -> list[Row]:
    """A search on the bundled network, with the cache and early rejection, against plain episodes.

    The plain search takes its number of episodes times the median of a few of them, which differ
    little. Of our search, every policy is measured again in full: the winner must be the same.
    """
    episodes = 4 if quick else settings.episodes
    module, layers, data = digits()
    times, _ = contest(module, layers, data, RECIPES["finetune"], 1 if quick else 5)
    recipe = RECIPES["finetune"]
    with tempfile.TemporaryDirectory() as folder:
        cache = EvaluationCache(Path(folder) / "cache.sqlite")
        subject = Subject(module, data, layers)
        rejecting = TrainedEvaluator(subject, recipe, SEED, cache, stopping=EarlyStopping())
        task = make_task(
            module, data, "bismo-edge", layers=layers, budget="w3a2", evaluator=rejecting
        )
        cpu = time.process_time()
        history = search_with_agent(QuantizationEnv(task), "haq-ddpg", episodes, SEED)
        cpu = time.process_time() - cpu
        cache.close()
    per_episode = statistics.median(times.cpu["plain"])
    ratio = per_episode * episodes / cpu
    hits = sum(trial.cache_hit for trial in history)
    full = TrainedEvaluator(Subject(module, data, layers), recipe)
    answers = [full.evaluate(trial.bits).accuracy for trial in history]
    best = history.best
    lost = max(answers) - full.evaluate(best.bits).accuracy
    noise = 100 * (0.5 / len(data.val) ** 0.5)
    return [
        Row(
            f"{episodes} episodes, cache and early rejection, {hits} remembered: plain / ours",
            ">= 5 x",
            f"{ratio:.3g} = {per_episode:.3g} s x {episodes} / {cpu:.4g} s",
            ratio >= 5,
        ),
        Row(
            "its winner, measured in full, below the best of its policies",
            f"<= {noise:.1f} points",
            f"{lost:.2f} points",
            lost <= noise,
        ),
    ]


def calibration(quick: bool, _: Settings) -> list[Row]:
    """Clips of all layers, weights and inputs, 2 to 8 bits, the float forward included."""
    rows = []
    small = V2._replace(size=32, batch=128, label="MobileNet-V2 1.0, 32 px")
    for net in (V1_QUARTER,) if quick else (V1_QUARTER, small):
        module, layers, images = net.module(), net.layers(), net.images()
        network, parts = plain_haq.plain_network(module, layers)

        def widths(
            bits: range,
            below: int,
            network: Any = network,
            parts: Any = parts,
            images: Any = images,
        ) -> Callable[[], None]:
            def run() -> None:
                for width in bits:
                    for part in parts:
                        part.w_bits = part.a_bits = width
                        part.calibrating, part.search_below = True, below
                    with torch.no_grad():
                        network(images)

            return run

        times = Times(
            {
                "ours": lambda m=module, t=layers, i=images: QuantizedNetwork(
                    m, t, calibration_images=i
                ),
                "rule": widths(range(2, 9), below=5),
                "all": widths(range(2, 9), below=9),
            },
            1 if quick else 3,
        )
        about = f"{net.label}, batch {net.batch}: HAQ's search"
        rows.append(
            times.faster(f"{about} below 5 bits, above the maximum / ours", "ours", "rule", 20)
        )
        rows.append(times.told(f"{about} at every width / ours", "all", "ours"))
    return rows


def kmeans(quick: bool, _: Settings) -> list[Row]:
    """Codebooks of 256 centroids for the weights of ResNet-50, 1,000 classes.

    One layer of each shape is clustered by both and counts as often as the shape occurs; sorting
    is ours to pay every time, although one sort serves all widths.
    """
    torch.manual_seed(SEED)
    module = load_network("resnet50", classes=1000, image_size=224)
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    shapes = Counter(tuple(weight.shape) for weight in weights)
    numel = {shape: int(np.prod(shape)) for shape in shapes}
    if quick:
        shapes = Counter({shape: n for shape, n in shapes.items() if numel[shape] < 70_000})
    seconds = {"ours": 0.0, "plain": 0.0}
    error = {"ours": 0.0, "plain": 0.0}
    np.random.seed(SEED)  # noqa: NPY002  # scikit-learn draws from it
    for shape, count in shapes.items():
        values = next(w for w in weights if tuple(w.shape) == shape).detach().numpy().ravel()
        start = time.process_time()
        own = SortedValues(values).cluster(8)
        middle = time.process_time()
        theirs = plain_haq.kmeans(values, 8)
        seconds["ours"] += count * (middle - start)
        seconds["plain"] += count * (time.process_time() - middle)
        error["ours"] += count * own.mse * values.size
        error["plain"] += count * float(theirs.inertia_)
    millions = sum(numel[shape] * count for shape, count in shapes.items()) / 1e6
    ratio, inertia = seconds["plain"] / seconds["ours"], error["ours"] / error["plain"]
    about = f"{sum(shapes.values())} layers, {millions:.1f} M weights, 8 bits"
    return [
        Row(
            f"{about}: scikit-learn, 3 iterations / ours",
            ">= 50 x",
            f"{ratio:.3g} = {seconds['plain']:.4g} / {seconds['ours']:.3g} s",
            ratio >= 50,
        ),
        Row("inertia: ours / scikit-learn", "<= 1.03 x", f"{inertia:.3f}", inertia <= 1.03),
    ]


class Free:
    """An evaluator that answers at once."""

    float_accuracy = 100.0

    def evaluate(self, bits: Any) -> Evaluation:
        """Answer."""
        return Evaluation(50.0)


def overhead(quick: bool, _: Settings) -> list[Row]:
    """What is not evaluation: the environment's own work, a known answer, worker processes."""
    env = QuantizationEnv(hardware="bismo-edge", evaluator=Free())
    rng, own = np.random.default_rng(SEED), []
    for _turn in range(20 if quick else 200):
        actions = rng.uniform(-1, 1, (len(env.task.space.steps), 1)).astype(np.float32)
        start = time.process_time()
        env.reset()
        for action in actions:
            env.step(action)
        own.append(1000 * (time.process_time() - start))
    module, layers, data = digits()
    hits: dict[str, list[float]] = {"in the file": [], "in memory": []}
    with tempfile.TemporaryDirectory() as folder:
        cache = EvaluationCache(Path(folder) / "cache.sqlite")
        first, second = (
            TrainedEvaluator(Subject(module, data, layers), RECIPES["ptq_bn"], SEED, cache)
            for _side in range(2)
        )
        known = [bits for _number, bits in zip(range(10), policies(layers), strict=False)]
        for bits in known:
            first.evaluate(bits)
        second.evaluate(known[0])  # reads network and images, once
        for bits in known[1:]:
            for times in hits.values():
                start = time.process_time()
                assert second.evaluate(bits).cache_hit
                times.append(1000 * (time.process_time() - start))
        cache.close()
    rows = [
        Row(
            f"an episode's own work, {len(env.task.space.steps)} steps",
            "< 5 ms",
            f"{statistics.median(own):.2f} ms",
            statistics.median(own) < 5,
        )
    ]
    for where, times in hits.items():
        took = statistics.median(times)
        rows.append(Row(f"a known answer, {where}", "< 1 ms", f"{took:.3f} ms", took < 1))
    return [*rows, workers(quick)]


def workers(quick: bool) -> Row:
    """Two worker processes of one thread against one process with both; wall time, in turn."""
    module, layers, data = digits()
    count, tier = (4, "ptq_bn") if quick else (8, "finetune")
    side = {
        n: TrainedEvaluator(Subject(module, data, layers), RECIPES[tier], workers=n, reuse=0)
        for n in (1, 2)
    }
    drawn = {n: policies(layers) for n in side}
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2 if quick else 4):
        for n, evaluator in side.items():
            batch = [next(drawn[n]) for _ in range(count)]
            torch.set_num_threads(2 if n == 1 else 1)
            start = time.perf_counter()
            evaluator.evaluate_batch(batch)
            if turn:  # the first one starts the processes
                times[n].append(time.perf_counter() - start)
    torch.set_num_threads(1)
    side[2].close()
    ratio = _median_ratio(times[1], times[2])
    pair = " / ".join(f"{count / statistics.median(times[n]):.3g}" for n in (2, 1))
    return Row(
        f"2 workers / one process with 2 threads, digits, {tier}, load {os.getloadavg()[0]:.1f}",
        ">= 1.3 x",
        f"{ratio:.3g} (wall) = {pair} evaluations/s",
        ratio >= 1.3,
    )


def growth(quick: bool, _: Settings) -> list[Row]:
    """Time of an evaluation without finetuning by images and by multiplications, log-log slope."""
    base = V1_QUARTER._replace(bn=256, val=1024)
    scale = 8 if quick else 1
    by_images = [base._replace(bn=256 * n // scale, val=1024 * n // scale) for n in (1, 2, 4)]
    by_macs = [net._replace(bn=128 // scale, val=512 // scale) for net in (V1_QUARTER, V1_HALF, V1)]
    rows = []
    for what, nets in (("images", by_images), ("MACs", by_macs)):
        runs, sizes = {}, []
        for number, net in enumerate(nets):
            module, layers = net.module(), net.layers()
            data = net.data(max(net.bn, 128), net.val)
            recipe = Recipe(steps=0, bn_images=net.bn)
            own = TrainedEvaluator(Subject(module, data, layers), recipe)
            runs[str(number)] = _each(own, policies(layers))
            sizes.append(net.bn + net.val if what == "images" else layers.macs)
        times = Times(runs, 1 if quick else 5)
        took = [1000 * statistics.median(times.cpu[name]) for name in runs]
        slope = float(np.polyfit(np.log(sizes), np.log(took), 1)[0])
        points = ", ".join(f"{x:.3g}: {y:.0f} ms" for x, y in zip(sizes, took, strict=True))
        rows.append(
            Row(f"exponent of time by {what} ({points})", "<= 1.1", f"{slope:.2f}", slope <= 1.1)
        )
    return rows


def cuda(quick: bool, _: Settings) -> list[Row]:
    """On a GPU, without finetuning: 512 images re-estimated, 10,000 measured."""
    rows = []
    for net in (RESNET20, Net("mobilenet_v2", 0.5, 32, 128, "MobileNet-V2 0.5, 32 px")):
        figure = f"{net.label}: evaluations/s"
        if not torch.cuda.is_available():
            rows.append(Row(figure, "", "no CUDA device: not run"))
            continue
        module, layers, data = net.module(), net.layers(), net.data(512, 10_000)
        own = TrainedEvaluator(Subject(module, data, layers, device="cuda"), RECIPES["ptq_bn"])
        drawn, count = policies(layers), 3 if quick else 20
        own.evaluate(next(drawn))
        start = time.perf_counter()
        for _turn in range(count):
            own.evaluate(next(drawn))
        rate = count / (time.perf_counter() - start)
        rows.append(Row(figure, "", f"{rate:.3g}, {torch.cuda.get_device_name()}"))
    return rows


# -- the report --------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[bool, Settings], list[Row]]] = {
    each.__name__: each
    for each in (
        evaluation,
        inference,
        step,
        episode,
        search,
        calibration,
        kmeans,
        overhead,
        growth,
        cuda,
    )
}


def machine() -> str:
    """Say where and with what this was measured."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        cpu = names[0] if names else cpu
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, one thread; "
        f"haq-env {haq_env.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"scikit-learn {sklearn.__version__}, Python {platform.python_version()}; seed {SEED}"
    )


def report(name: str, rows: list[Row], seconds: float) -> str:
    """Print a section and return it as it is written down."""
    console = Console(record=True, width=120)
    table = Table("figure", "target", "measured", "", title=name)
    for row in rows:
        verdict = "" if row.met is None else "met" if row.met else "NOT MET"
        table.add_row(row.figure, row.target, row.measured, verdict)
    console.print(table)
    console.print(f"{seconds:.0f} s, load {os.getloadavg()[0]:.1f}; {machine()}")
    about = str(SECTIONS[name].__doc__)
    return f"## {name}\n\n{inspect.cleandoc(about)}\n\n```\n{console.export_text()}```\n"


def write(name: str, text: str) -> None:
    """Replace one section of the results."""
    before = RESULTS.read_text("utf-8") if RESULTS.exists() else ""
    parts = {part.split("\n", 1)[0]: "## " + part for part in before.split("\n## ")[1:]}
    parts[name] = text
    body = "\n".join(parts[each].rstrip("\n") + "\n" for each in SECTIONS if each in parts)
    missing = [each for each in SECTIONS if each not in parts]
    note = f"Sections that have not been run: {', '.join(missing)}.\n\n" if missing else ""
    RESULTS.write_text(f"{HEAD}\n{note}{body}", "utf-8")


def main() -> None:
    """Measure, print, write."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(1)
    missed = 0
    for name in [settings.only] if settings.only else SECTIONS:
        start = time.perf_counter()
        rows = SECTIONS[name](settings.quick, settings)
        text = report(name, rows, time.perf_counter() - start)
        missed += sum(row.met is False for row in rows)
        if not settings.quick:
            write(name, text)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
