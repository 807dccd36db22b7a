"""What an image costs at ImageNet's size: decoding, inference, finetuning, one evaluation.

    python benchmarks/imagenet_speed.py [--images 256] [--device cuda]

Runs MobileNet-V2 at 224 pixels on a folder of generated JPEGs in ImageNet's layout, 500 x 375
pixels as most of ImageNet's. Its weights are random: no speed depends on them, and no accuracy is
told. Times are medians of turns: processor time on a CPU (all threads together), wall time on a
GPU. The last lines multiply them to one evaluation as HAQ has it. Writes
benchmarks/results/imagenet_speed.md.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

import haq_env
from haq_env.data import Dataset, load_dataset
from haq_env.errors import InputError
from haq_env.evaluation import Recipe
from haq_env.evaluation.device import find_device
from haq_env.evaluation.finetune import accuracy
from haq_env.make import make_task
from haq_env.networks import load_network

CLASSES = 4
SEARCH_TRAIN, SEARCH_VAL, BN_IMAGES = 20_000, 10_000, 512  # of HAQ's search, and of ours


@dataclass(frozen=True)
class Settings:
    """Measure the time that an image takes at ImageNet's size."""

    images: int = 128
    """Generated images to train on and to hold out, together."""
    batch: int = 16
    """Images of a finetuning step."""
    turns: int = 3
    """How often everything is timed."""
    network: str = "mobilenet_v2"
    """Name of the network."""
    size: int = 224
    """Side of the images that it sees, in pixels."""
    device: str = "cpu"
    """Torch device."""
    threads: int = 1
    """Threads of torch on the CPU; with more than one, processor time is the sum of all."""
    out: Path = Path(__file__).parent / "results"
    """Folder of the result."""


def generate(root: Path, count: int) -> None:
    """Write JPEGs into ImageNet's layout: smooth noise, which compresses like photographs."""
    rng = np.random.default_rng(0)
    for part, number in (("train", count), ("val", CLASSES)):
        for index in range(number):
            folder = root / part / f"n{index % CLASSES:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
            image = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int64)
            grain = image + rng.normal(0, 8, image.shape)
            pixels = Image.fromarray(grain.clip(0, 255).astype(np.uint8))
            pixels.save(folder / f"{index:06d}.JPEG", quality=90)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Time one call, to its end on the device.

    On a CPU it is processor time, which other work on the machine changes little; of one thread
    it is what the wall clock of an idle machine shows.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def measure(settings: Settings, root: Path) -> list[tuple[str, float, int]]:
    """Time everything: what, seconds a turn, images a turn."""
    device = find_device(settings.device)
    name = f"imagenet:{root / 'images'}"
    held = settings.images // 2
    loaded: list[Dataset] = []

    def load() -> None:
        loaded.append(load_dataset(name, val=held, size=settings.size))

    total = settings.images + CLASSES
    rows = [("decoding, once (resize, cut, keep)", seconds(load, device), total)]
    rows.append(("loading again, from the cache folder", seconds(load, device), total))
    data = loaded[-1]
    module = load_network(settings.network, classes=data.classes, image_size=settings.size)
    task = make_task(
        module, data, budget="w4a4", evaluator=Recipe(0), device=settings.device, reuse=0
    )
    evaluator = task.trained()
    rows.append(("calibration of all widths, once", seconds(lambda: evaluator.bench, device), 1))
    bench, bits = evaluator.bench, task.uniform()
    val, train = bench.images["val"], bench.images["train"]
    steps = max(1, len(train) // settings.batch)
    short = Recipe(steps=steps, batch_size=settings.batch, bn_images=settings.batch)

    def in_float() -> None:
        bench.network.set_policy(None)
        accuracy(bench.network, val)

    def quantized() -> None:
        bench.network.set_policy(bits)
        accuracy(bench.network, val)

    def recalibration() -> None:
        bench.network.recalibrate_batchnorm(train.batch(slice(0, len(train))))

    def finetuning() -> None:
        bench.measure(bits, short, 0, ())

    def restoring() -> None:  # what a finetuning does besides its steps
        bench.measure(bits, replace(short, steps=0), 0, ())

    contenders = (
        ("inference, float", in_float, len(val)),
        ("inference, w4a4", quantized, len(val)),
        ("batch norm anew, w4a4", recalibration, len(train)),
        ("finetuning, w4a4", finetuning, steps * settings.batch),
        ("restoring", restoring, 1),
    )
    times: dict[str, list[float]] = {what: [] for what, _, _ in contenders}
    for _ in range(settings.turns):
        for what, action, _ in contenders:
            times[what].append(seconds(action, device))
    base = statistics.median(times.pop("restoring"))
    for what, _, count in contenders[:-1]:
        once = statistics.median(times[what])
        rows.append((what, max(0.0, once - base) if what.startswith("fine") else once, count))
    return rows


def report(rows: list[tuple[str, float, int]], settings: Settings) -> None:
    """Print and write the table, and what an evaluation of HAQ's size would take."""
    console = Console(record=True, width=100)
    table = Table("what", "ms an image", "images a second", "measured on")
    each = {}
    for what, once, count in rows:
        each[what] = once / count
        if count == 1:
            table.add_row(what, f"{1e3 * once:.0f} in all", "-", "-")
        else:
            table.add_row(what, f"{1e3 * once / count:.3f}", f"{count / once:.1f}", str(count))
    console.print(table)
    decoding = each["decoding, once (resize, cut, keep)"] * (SEARCH_TRAIN + SEARCH_VAL)
    inference, again = each["inference, w4a4"], each["batch norm anew, w4a4"]
    cheap = again * BN_IMAGES + inference * SEARCH_VAL
    epoch = each["finetuning, w4a4"] * SEARCH_TRAIN
    for what, time_ in (
        (f"decoding {SEARCH_TRAIN + SEARCH_VAL:,} images, once", decoding),
        (f"ptq_bn: {BN_IMAGES} images for batch norm, {SEARCH_VAL:,} held out", cheap),
        (f"HAQ's reward: one epoch of {SEARCH_TRAIN:,}, then the same", cheap + epoch),
    ):
        console.print(f"computed from it, not measured: {what}: {time_ / 60:.1f} min")
    where = torch.cuda.get_device_name() if settings.device.startswith("cuda") else "CPU"
    clock = "wall time" if settings.device.startswith("cuda") else "processor time"
    console.print(
        f"{clock}; {settings.network}, {settings.size} pixels, batch {settings.batch}, {where}, "
        f"{settings.threads} thread(s) of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}, "
        f"{platform.machine()}; haq-env {haq_env.__version__}, torch {torch.__version__}"
    )
    names = ("images", "batch", "turns", "network", "size", "device", "threads")
    options = " ".join(f"--{name} {getattr(settings, name)}" for name in names)
    text = f"# Speed at ImageNet's size\n\n`python benchmarks/imagenet_speed.py {options}`\n\n"
    text += "The weights are random and the images generated: times only.\n\n"
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "imagenet_speed.md"
    path.write_text(f"{text}```\n{console.export_text()}```\n", encoding="utf-8")
    print(f"Written: {path}")


def main() -> None:
    """Generate, measure, report."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(settings.threads)
    try:
        if settings.images < 4 * settings.batch or settings.turns < 1:
            raise InputError("images must be at least 4 batches, and turns at least 1.")
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HAQ_ENV_DATA"] = f"{folder}/cache"  # gone with the images
            generate(Path(folder) / "images", settings.images)
            rows = measure(settings, Path(folder))
        report(rows, settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
