"""Train a float network to be quantized: resumable, with its curve and its card beside the weights.

    python benchmarks/train_network.py --network resnet20 --dataset cifar10:FOLDER [--epochs 100]
        [--width 0.5] [--minutes 30] [--out runs/train/resnet20_cifar10.safetensors]

Writes FILE.safetensors with FILE.csv (one row an epoch) and FILE.json (command, settings, seed,
time, versions, accuracy). Call it again with the same settings after a kill, or after --minutes,
and it goes on: on a CPU with the same number of threads it ends in the same bits. A GPU is used if
there is one. The file can be given as a checkpoint, or dropped into haq_env/networks/weights as
NETWORK_DATASET.safetensors. The training never sees held-out or test images; the test images are
measured once, in the end.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes

from haq_env.data import dataset_argument, dataset_name
from haq_env.errors import InputError
from haq_env.evaluation.device import find_device
from haq_env.malloc import keep_freed_memory
from haq_env.training.resumable import train_in_pieces
from haq_env.training.trainer import Epoch, Precision, Trainer, Training


@dataclass(frozen=True)
class Settings:
    """Train a float network, and go on where an earlier call stopped."""

    network: str
    """Name of the network, see `haq-env networks`."""
    dataset: str = "cifar10"
    """Name of the data set, with its folder if it is not in the cache: cifar10:FOLDER."""
    width: float = 1.0
    """Factor on the channel counts."""
    image_size: int | None = None
    """Side of the images, for data sets that come in several sizes."""
    training: Training = field(default_factory=Training)
    """The recipe."""
    out: Path | None = None
    """The file of the weights; runs/train/NETWORK_DATASET.safetensors when not given."""
    minutes: float | None = None
    """Stop after the epoch in which they are over."""
    device: str | None = None
    """Torch device; cuda if there is one, else cpu."""
    precision: Precision = "auto"
    """Arithmetic of training: bfloat16 on a GPU, float32 elsewhere."""
    compiled: Annotated[bool, FlagCreatePairsOff] = False
    """Compile the training steps: faster for MobileNets, slower for ResNet-20 (on a CPU)."""
    threads: int | None = None
    """Threads of torch; those of OMP_NUM_THREADS when not given."""

    @property
    def file(self) -> Path:
        """Where the weights go."""
        if self.out is not None:
            return self.out
        width = "" if self.width == 1 else f"_{round(100 * self.width):03d}"
        name = f"{self.network}{width}_{dataset_name(self.dataset)}".replace(":", "-")
        return Path("runs/train") / f"{name}.safetensors"

    @property
    def command(self) -> str:
        """What makes these weights, without the places of a machine."""
        dataset = dataset_argument(self.dataset)
        shown: dict[str, Any] = {"network": self.network, "dataset": dataset}
        if self.width != 1:
            shown["width"] = self.width
        if self.image_size is not None:
            shown["image_size"] = self.image_size
        shown |= {each.name: getattr(self.training, each.name) for each in fields(Training)}
        flags = [f"--{name.replace('_', '-')} {shlex.quote(str(v))}" for name, v in shown.items()]
        flags += [f"--precision {self.precision}", *["--compiled"] * self.compiled]
        flags += [f"--threads {torch.get_num_threads()}"]
        return " ".join(["python benchmarks/train_network.py", *flags])


class Report:
    """A line for each epoch, with the time that is left, and a bar where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total} steps"), TimeRemainingColumn(compact=True),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task, self._epochs = TaskID(0), 0

    def begin(self, trainer: Trainer) -> None:
        """Say where the training is."""
        done, self._epochs = len(trainer.rows), trainer.training.epochs
        self._console.print(
            f"{len(trainer.rows)} of {self._epochs} epochs are done; {trainer.steps} steps each"
        )
        self._bar.start()
        self._task = self._bar.add_task("epoch", total=trainer.steps, epoch=done + 1)

    def step(self) -> None:
        """Move the bar."""
        self._bar.advance(self._task)

    def row(self, row: Epoch, left: float) -> None:
        """Print the line of an epoch."""
        self._bar.reset(self._task, epoch=row.epoch + 1)
        self._console.print(
            f"epoch {row.epoch}/{self._epochs}: loss {row.loss:.4f}, train {row.train:.2f} %, val "
            f"{row.val:.2f} %, {row.seconds:.1f} s; {left / 60:.1f} min left",
            highlight=False,
        )

    def end(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def main() -> None:
    """Train."""
    keep_freed_memory()
    settings = tyro.cli(OmitArgPrefixes[Settings], description=__doc__)
    report = Report(Console(width=110))
    try:
        if settings.threads is not None:
            if settings.threads < 1:
                raise InputError(f"threads must be 1 or more, not {settings.threads}.")
            torch.set_num_threads(settings.threads)
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        card = train_in_pieces(
            settings.network,
            settings.dataset,
            settings.file,
            settings.training,
            width=settings.width,
            image_size=settings.image_size,
            device=find_device(device),
            precision=settings.precision,
            compiled=settings.compiled,
            minutes=settings.minutes,
            command=settings.command,
            show=report,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: call it again to go on after the last epoch", file=sys.stderr)
        sys.exit(130)
    finally:
        report.end()
    if card is None:
        print("the time is over: call it again to go on")
        return
    accuracy = ", ".join(f"{part} {value:.2f} %" for part, value in card["accuracy"].items())
    print(f"Written: {settings.file} ({accuracy}; {card['seconds'] / 60:.1f} min)")


if __name__ == "__main__":
    main()
