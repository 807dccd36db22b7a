"""What trained float networks are worth on their images, or on the same ones encoded otherwise.

    python benchmarks/float_accuracy.py --datasets cifar10:FOLDER cifar10

Measures top-1 on held-out and test images of each data set, every image once, without
augmentation. The interval behind it is that of so many images (Wilson, 95 %). Writes
benchmarks/results/float_accuracy.md.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import tyro
from result_files import command_line, write_text
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from haq_env.data import Dataset, Split, load_dataset
from haq_env.errors import InputError
from haq_env.evaluation.finetune import Images, accuracy
from haq_env.networks import load_network
from haq_env.networks.bundled import find_trained
from haq_env.networks.checkpoint import load_checkpoint

COLUMNS = ("network", "data set", "images", "held out, %", "test, %")
NETWORKS = ("mobilenet_v1_050", "resnet20", "mobilenet_v2_050")


@dataclass(frozen=True)
class Settings:
    """Measure trained float networks."""

    networks: tuple[str, ...] = NETWORKS
    """Names of the networks."""
    datasets: tuple[str, ...] = ("cifar10",)
    """Names of data sets with the classes that they were trained on."""
    checkpoint: Path | None = None
    """Weights of the only network; the bundled ones when not given."""
    device: str = "cpu"
    """Where to measure."""
    out: Path = Path("benchmarks/results/float_accuracy.md")
    """Markdown table."""


def row(settings: Settings, network: str, name: str) -> tuple[str, ...]:
    """Measure one network on one data set."""
    found = find_trained(network, name, settings.checkpoint)
    assert found.checkpoint is not None, "a named network comes with a file"
    data = load_dataset(name, **dict(found.dataset_options))
    build = dict(found.build)
    if build.get("classes") != data.classes:
        raise InputError(
            f"{found.checkpoint} is for {build.get('classes')} classes, and data set {data.name!r} "
            f"has {data.classes}."
        )
    module = load_network(network, **build)
    load_checkpoint(found.checkpoint, module)
    module.to(settings.device).eval()
    files = ", ".join(data.about.get("files", ())) or "as loaded"
    measured = [_measured(module, each, data, settings.device) for each in (data.val, data.test)]
    return network, name.partition(":")[0], data.note or files, *measured


def _measured(module: torch.nn.Module, split: Split, data: Dataset, device: str) -> str:
    share = accuracy(module, Images(split, data, torch.device(device))) / 100
    right = round(share * len(split))
    interval = binomtest(right, len(split)).proportion_ci(method="wilson")
    return f"{100 * share:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def main(settings: Settings) -> int:
    """Measure, print, and write the table."""
    if settings.checkpoint is not None and len(settings.networks) != 1:
        raise InputError("weights of one network: name it with --networks.")
    rows = [
        row(settings, network, name) for network in settings.networks for name in settings.datasets
    ]
    table = Table(*COLUMNS, title="Float networks, top-1")
    for each in rows:
        table.add_row(*each)
    Console().print(table)
    lines = [
        "# Top-1 of the trained networks in float",
        "",
        f"`{command_line('benchmarks/float_accuracy.py', settings)}`",
        "",
        "In brackets: the 95 % interval of so many images.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"{'|---' * len(COLUMNS)}|",
        *(f"| {' | '.join(each)} |" for each in rows),
        "",
        f"torch {torch.__version__.partition('+')[0]}, numpy {np.__version__}",
        "",
    ]
    write_text(settings.out, "\n".join(lines))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Settings)))
    except InputError as error:
        sys.exit(f"float_accuracy: {error}")
