"""Sections of speed.py about one network: evaluating, finetuning and calibrating it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import plain_haq
import torch
from speed_measuring import (
    NETS,
    RESNET20,
    SEED,
    V1,
    V1_HALF,
    V1_QUARTER,
    V2,
    Net,
    Row,
    Times,
    each,
    median_ratio,
    no_gradient,
    plain,
    policies,
    quantized,
)
from speed_roofline import Roof
from torch import Tensor, nn
from torch.nn import functional as F

from haq_env.evaluation import RECIPES, Recipe
from haq_env.evaluation import inference as inference_choice
from haq_env.evaluation.bench import Subject
from haq_env.evaluation.finetune import Images, finetune
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.networks import load_network
from haq_env.quantization.clustering import SortedValues
from haq_env.quantization.integer import IntegerNetwork
from haq_env.quantization.linear import LinearQuantizer
from haq_env.quantization.network import QuantizedNetwork
from haq_env.quantization.products import Unsupported
from haq_env.quantization.recording import record_inputs
from haq_env.quantization.scheme import Settings


def evaluation(quick: bool, _: int) -> list[Row]:
    """One policy: clips, re-estimation of batch norm, validation; no finetuning.

    Twenty images are validated for every one that batch norm is re-estimated on: HAQ validates
    10,000, and this package re-estimates on 512. "int8" is its integer inference, "float"
    its default. The networks are untrained, so that predictions nearly tie; that integers agree is
    tested on trained ones (tests/test_integer.py) and not asked for here.
    Without VNNI integer convolutions take 0.26 to 0.51 of the float time (section inference) and
    not 0.12 to 0.37: there the targets are missed, by a quarter at most. With VNNI MobileNet-V1
    0.25 is on the border, 7.6 to 10 in five measurements: its maps are so small that converting a
    policy and re-estimating batch norm, in float, are a quarter of what is left, and the rest are
    integer convolutions. Keeping the codes of the images for all policies was tried: 2 %; batches
    of 256 in place of 128: a tenth less there, and 2 to 7 % more on the larger networks.
    ResNet-20 is on its border as well: 4.7, 5.4 and 7.1 in three measurements, in which the plain
    side took 2.6 to 3.9 s and ours 0.54 to 0.62.
    """
    with patch.object(inference_choice, "AGREEMENT", 0.0):
        return _evaluations((V1_QUARTER._replace(bn=32, val=640),) if quick else NETS, quick)


def _evaluations(nets: Sequence[Net], quick: bool) -> list[Row]:
    rows = []
    for net in nets:
        module, layers = net.module(), net.layers()
        data = net.data(max(net.bn, net.calibration), net.val)
        recipe = Recipe(steps=0, bn_images=net.bn)
        batch = min(128, net.batch)
        int8 = TrainedEvaluator(
            Subject(module, data, layers, inference="int8"), recipe, reuse_bytes=0
        )
        sides = {
            "plain": plain_haq.PlainEvaluator(
                module, layers, data, recipe, calibration=net.calibration, batch=batch
            ),
            # without prefix reuse: all policies begin alike, as those of a search need not
            "float": TrainedEvaluator(Subject(module, data, layers), recipe, reuse_bytes=0),
            "int8": int8,
        }
        runs = {name: each(side, policies(layers)) for name, side in sides.items()}
        times = Times(runs, 1 if quick else 3)
        about = f"{net.label}, {net.bn} re-estimated, {net.val} validated"
        bound = 5 if net is RESNET20 else 8
        if int8.bench.inference.name == "int8":
            rows.append(times.faster(f"{about}: plain / int8", "int8", "plain", bound))
        else:
            rows.append(Row(f"{about}: plain / int8", "", int8.bench.inference.note))
        rows.append(times.told(f"{about}: plain / float", "plain", "float"))
    return rows


def inference(quick: bool, _: int) -> list[Row]:
    """A forward pass of one batch under a mixed policy, against the eager float network.

    The float path pays four passes over every feature map for its quantizers, and wins them back
    by channels-last convolutions, absorbed ReLUs and batch norm in place: not quite where
    convolutions are small. Quantizing in pieces that fit the cache (2^15 to 2^18 numbers) gained
    nothing. Telling glibc to keep freed memory, as the commands do (`haq_env.malloc`) and this
    benchmark does not, helps the eager float network more than ours, which works in place: on a
    processor with VNNI ours then takes 0.91 to 1.04 of it, and integers 0.23 to 0.36.
    """
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
            runs["conversion"] = partial(IntegerNetwork.of, network)
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


def step(quick: bool, _: int) -> list[Row]:
    """Finetuning: forward, backward, SGD, with the package's own loop and its gathering of data.

    Plain steps of ResNet-20 take 1.2 to 1.5 of the float step, those of MobileNets 1.5 to 2.5: its
    convolutions are dense, so that quantizers are a smaller part, and 1.6 times as fast as plain is
    near the limit there: met with AVX-512 (1.71), missed with AVX2 (1.4).
    """
    rows = []
    count = 2
    for net in (
        NETS[:1]
        if quick
        else (*NETS[:4], V2._replace(size=32, batch=64, label="MobileNet-V2 1.0, 32 px"))
    ):
        data = net.data(count * net.batch, 1)
        images = Images(data.train, data, torch.device("cpu"))
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
                    torch.autograd.backward(loss)
                    sgd.step()

            return run

        times = Times(
            {
                "float": loop(net.module()),
                "plain": loop(plain(net, batches[0][0])),
                "ours": partial(finetune, network, images, recipe, 0, network.after_step),
            },
            3 if quick else 5,
        )
        about = f"{net.label}, batch {net.batch}, {count} steps"
        rows.append(times.at_most(f"{about}: ours / float", "ours", "float", 1.0))
        rows.append(times.faster(f"{about}: plain / ours", "ours", "plain", 1.6))
    return rows


def calibration(quick: bool, _: int) -> list[Row]:
    """Clips of all layers, weights and inputs, 2 to 8 bits, the float forward included.

    HAQ's released code searches below 5 bits only and takes the largest magnitude above; equal
    work is the search at every width, which is what ours does. On MobileNet-V1 0.25 a third of ours
    is sorting, half the search among 98 clips for each width. Tried without moving a clip: every
    fourth clip first and then those beside the best, all widths in one call (together a tenth
    less time for twice the code), sorting only what is positive (nothing). Samples of 2^16 values
    in place of 2^20 save a quarter, and move single clips by up to a fifth. The plain search gains
    from AVX-512, ours, half of which is waiting for memory, hardly: hence the lower ratios there.
    """
    rows = []
    small = V2._replace(size=32, batch=128, label="MobileNet-V2 1.0, 32 px")
    for net in (V1_QUARTER,) if quick else (V1_QUARTER, small):
        module, layers, images = net.module(), net.layers(), net.images()
        network, parts = plain_haq.plain_network(module, layers)
        own = QuantizedNetwork(module, layers, calibration_images=images)
        found = {name: own.module.get_submodule(name) for name in layers.names}

        def clips(
            own: QuantizedNetwork = own,
            found: dict[str, nn.Module] = found,
            images: Tensor = images,
        ) -> list[LinearQuantizer]:
            inputs = record_inputs(own, found, images)
            return [
                LinearQuantizer(layer, part.get_parameter("weight"), sample, Settings())
                for layer, part, sample in zip(own.layers, found.values(), inputs, strict=True)
            ]

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
                "ours": clips,
                "rule": widths(range(2, 9), below=5),
                "all": widths(range(2, 9), below=9),
            },
            1 if quick else 3,
        )
        about = f"{net.label}, batch {net.batch}: HAQ's search"
        rows.append(
            times.faster(f"{about} below 5 bits, above the maximum / ours", "ours", "rule", 20)
        )
        rows.append(times.faster(f"{about} at every width / ours", "ours", "all", 20))
    return rows


def kmeans(quick: bool, _: int) -> list[Row]:
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


def growth(quick: bool, _: int) -> list[Row]:
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
            own = TrainedEvaluator(Subject(module, data, layers), recipe, reuse_bytes=0)
            runs[str(number)] = each(own, policies(layers))
            sizes.append(net.bn + net.val if what == "images" else layers.macs)
        times = Times(runs, 1 if quick else 5)
        took = [1000 * statistics.median(times.cpu[name]) for name in runs]
        slope = float(np.polyfit(np.log(sizes), np.log(took), 1)[0])
        points = ", ".join(f"{x:.3g}: {y:.0f} ms" for x, y in zip(sizes, took, strict=True))
        rows.append(
            Row(f"exponent of time by {what} ({points})", "<= 1.1", f"{slope:.2f}", slope <= 1.1)
        )
    return rows


def cuda(quick: bool, _: int) -> list[Row]:
    """On a GPU: evaluations/s without finetuning, and CUDA graphs against one by one with it.

    Without finetuning 512 images are re-estimated and 10,000 measured; the share of the roofline
    is what float32 layers would take at the peaks of this device, as measured (speed_roofline.py),
    in the time that it takes. With it (28 steps of 32,
    512 re-estimated, 450 measured) a batch of 32 policies is evaluated with `graphs="auto"`, which
    may also choose one by one, against `graphs="off"`; wall time, in turn.
    """
    nets = (RESNET20, Net("mobilenet_v2", 0.5, 32, 128, "MobileNet-V2 0.5, 32 px"))
    if not torch.cuda.is_available():
        figures = "evaluations/s, share of the roofline, CUDA graphs / one by one"
        return [Row(f"{net.label}: {figures}", "", "not run: no CUDA device") for net in nets]
    rows, roof = [], Roof.of(torch.device("cuda"))
    for net in nets:
        module, layers, data = net.module(), net.layers(), net.data(512, 10_000)
        own = TrainedEvaluator(Subject(module, data, layers, device="cuda"), RECIPES["ptq_bn"])
        drawn, count = policies(layers), 3 if quick else 20
        own.evaluate(next(drawn))
        start = time.perf_counter()
        for _turn in range(count):
            own.evaluate(next(drawn))
        rate = count / (time.perf_counter() - start)
        share = rate * roof.seconds(layers, 512 + 10_000)
        name = f"{torch.cuda.get_device_name()}, {share:.0%} of its roofline"
        rows.append(Row(f"{net.label}: evaluations/s", "", f"{rate:.3g}, {name}"))
        rows.append(graphs(net, 4 if quick else 32, 1 if quick else 3))
    return rows


def graphs(net: Net, count: int, turns: int) -> Row:
    """Batches of policies with finetuning: CUDA graphs against one by one."""
    module, layers, data = net.module(), net.layers(), net.data(2048, 450)
    sides = {
        use: TrainedEvaluator(
            Subject(module, data, layers, device="cuda", graphs=use), RECIPES["finetune"]
        )
        for use in ("auto", "off")
    }
    drawn = {use: policies(layers) for use in sides}
    notes: set[str] = set()

    def batch(use: str) -> Callable[[], None]:
        def run() -> None:
            found = sides[use].evaluate_batch([next(drawn[use]) for _ in range(count)])
            notes.update(each.note for each in found if each.note)

        return run

    times = Times({use: batch(use) for use in sides}, turns)
    ratio = median_ratio(times.wall["off"], times.wall["auto"])
    rates = " / ".join(f"{count / statistics.median(times.wall[use]):.3g}" for use in sides)
    measured = f"{ratio:.3g} (wall) = {rates} evaluations/s {'; '.join(sorted(notes))}".rstrip()
    return Row(f"{net.label}, finetune, {count} at once: graphs / one by one", "", measured)
