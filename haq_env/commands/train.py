"""The command that trains float networks."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from haq_env.errors import InputError, OccupiedError
from haq_env.options import Network, OptionalInt
from haq_env.report.terminal import Live, write
from haq_env.training.settings import Augmentation, Precision, Schedule, Training

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Train:
    """Train a float network and write a checkpoint that environments can use.

    FILE.csv (one row an epoch) and FILE.json (command, settings, accuracies, time, versions) come
    beside FILE.safetensors. The same command goes on after a kill, or after --minutes: on a CPU
    with the same number of threads it ends in the same bits. Held-out and test images are never
    trained on; the test images are measured once, in the end.

    Exit codes: 0 when the file was written or --minutes are over, 2 when something given cannot be
    used, 130 after Ctrl-C.
    """

    network: Network
    dataset: str = "digits"
    """Data set by name, some with a folder (cifar10:FOLDER), or package.module:factory."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """The safetensors file; runs/train/NETWORK_DATASET.safetensors when not given."""
    width: float = 1.0
    """Factor on the channel counts of built-in networks."""
    image_size: OptionalInt = None
    """Height and width of the images, where the data set comes in several sizes."""
    epochs: OptionalInt = None
    """Passes over the training images; 30 for fewer than 10,000 of them, else 100."""
    batch_size: OptionalInt = None
    """Images a step; 32 for fewer than 10,000 training images, else 128."""
    learning_rate: float = Training.learning_rate
    """The highest one."""
    schedule: Schedule = Training.schedule
    """How it rises and falls: a short rise and a cosine, or a quarter up and three down."""
    momentum: float = Training.momentum
    """Of SGD, which is Nesterov's."""
    weight_decay: float = Training.weight_decay
    """On the weights of convolutions and linear layers."""
    label_smoothing: float = Training.label_smoothing
    """Share of each label that is spread over all classes."""
    ema: float = Training.ema
    """Decay, a step, of a moving average that is kept instead of the weights; 0 for none."""
    augmentation: Annotated[Augmentation | None, arg(metavar="{crop-flip,crop,none}")] = None
    """What is done to training images; none for grey ones, crop-flip for others."""
    seed: int = Training.seed
    """Of the first weights, the order of images and the augmentation."""
    minutes: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Stop after the epoch in which they are over."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """Torch device; cuda if there is one, else cpu."""
    precision: Precision = "auto"
    """Arithmetic of training: bfloat16 on a GPU, float32 elsewhere."""
    compiled: bool = False
    """Compile the training steps: faster for MobileNets, slower for ResNet-20 (on a CPU)."""
    threads: OptionalInt = None
    """Threads of torch; those of OMP_NUM_THREADS when not given."""

    def run(self) -> None:
        """Train, write the files, print the accuracies."""
        try:
            card = self._train(Live(width=110))
        except KeyboardInterrupt:
            print("stopped: the same command goes on after the last epoch", file=sys.stderr)
            raise
        except OccupiedError as error:
            raise InputError(f"{error} --out gives another file.") from error
        if card is None:
            write("The time is over: the same command goes on.\n")
            return
        found = ", ".join(f"{part} {value:.2f} %" for part, value in card["accuracy"].items())
        write(f"Written: {self.file} ({found}; {card['seconds'] / 60:.1f} min)\n")

    def _train(self, console: Console) -> dict[str, Any] | None:
        given = {each.name: getattr(self, each.name) for each in fields(Training)}
        # before torch is loaded, and images perhaps fetched
        Training(**{name: value for name, value in given.items() if value is not None})
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be 1 or more, not {self.threads}.")
        import torch

        from haq_env.data import load_dataset
        from haq_env.evaluation.device import find_device
        from haq_env.training.progress import TrainingProgress
        from haq_env.training.resumable import train_in_pieces

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = find_device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        options = {} if self.image_size is None else {"size": self.image_size}
        training = Training.for_images(load_dataset(self.dataset, **options), **given)
        with TrainingProgress(console) as progress:
            return train_in_pieces(
                self.network,
                self.dataset,
                self.file,
                training,
                width=self.width,
                image_size=self.image_size,
                device=device,
                precision=self.precision,
                compiled=self.compiled,
                minutes=self.minutes,
                command=self.command(training),
                show=progress,
            )

    @property
    def file(self) -> Path:
        """Where the weights go."""
        if self.out is not None:
            return self.out
        from haq_env.data import dataset_name

        width = "" if self.width == 1 else f"_{round(100 * self.width):03d}"
        name = f"{self.network}{width}_{dataset_name(self.dataset)}".replace(":", "-")
        return Path("runs/train") / f"{name}.safetensors"

    def command(self, training: Training) -> str:
        """Return what makes these weights, without the places of a machine.

        Args:
            training: all settings, so that other defaults of a later version do not matter.
        """
        import torch

        from haq_env.data import dataset_argument

        shown: dict[str, Any] = {"dataset": dataset_argument(self.dataset)}
        if self.width != 1:
            shown["width"] = self.width
        if self.image_size is not None:
            shown["image_size"] = self.image_size
        shown |= {each.name: getattr(training, each.name) for each in fields(Training)}
        flags = [f"--{name.replace('_', '-')} {shlex.quote(str(v))}" for name, v in shown.items()]
        flags += [f"--precision {self.precision}", *["--compiled"] * self.compiled]
        flags += [f"--threads {torch.get_num_threads()}"]
        return " ".join(["haq-env train", shlex.quote(self.network), *flags])
