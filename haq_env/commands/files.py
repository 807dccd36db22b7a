"""Commands that write files: trained checkpoints, and policies for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from haq_env.files import writing
from haq_env.options import Network, OptionalInt
from haq_env.report.terminal import write


@dataclass(frozen=True)
class Train:
    """Train a float network and write a checkpoint that environments can use."""

    network: Network
    out: Annotated[Path, arg(metavar="FILE", help="The safetensors file to write.")]
    dataset: str = "digits"
    """Data set by name, or package.module:factory."""
    width: float = 1.0
    """Factor on the channel counts of built-in networks."""
    image_size: OptionalInt = None
    """Height and width of the images, where the data set comes in several sizes."""
    epochs: int = 30
    """Passes over the training images."""
    learning_rate: float = 0.1
    """Of the first step; it follows a cosine down to zero."""
    batch_size: int = 32
    """Images a step."""
    weight_decay: float = 5e-4
    """On the weights of convolutions and linear layers."""
    seed: int = 0
    """Of the first weights and of the order of images."""
    device: str = "cpu"
    """Torch device."""

    def run(self) -> None:
        """Train, write the file, print the accuracies."""
        from dataclasses import asdict

        from haq_env.training.train import train_float

        with writing(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
        accuracy = train_float(**asdict(self))["accuracy"]
        found = ", ".join(f"{part} {value:.2f} %" for part, value in accuracy.items())
        write(f"Written: {self.out} ({found})\n")


@dataclass(frozen=True)
class Convert:
    """Turn a policy into other tools' files, or a CSV table into a policy."""

    file: Annotated[Positional[Path], arg(metavar="FILE", help="A policy.json, or a .csv table.")]
    out: Annotated[Path, arg(metavar="FILE", help="The file to write.")]
    to: Annotated[str | None, arg(metavar="FORM")] = None
    """csv, hawq (bit_config) or nncf (bitwidth_per_scope); a policy when not given."""

    def run(self) -> None:
        """Write the file."""
        from haq_env.conversion import convert

        write(f"Written: {convert(self.file, self.out, self.to)}\n")
