"""A training that may be killed at any time: its files, and how it goes on."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from haq_env.data import DATASETS, Dataset, dataset_name, load_dataset
from haq_env.errors import InputError, OccupiedError
from haq_env.evaluation.device import find_device
from haq_env.files import replace_file
from haq_env.networks import NETWORKS, load_network
from haq_env.networks.bundled import build_for
from haq_env.networks.checkpoint import read_metadata, save_checkpoint
from haq_env.networks.layers_json import layers_to_json
from haq_env.networks.trace import trace
from haq_env.training.settings import Precision, Training
from haq_env.training.trainer import Epoch, Trainer


class Show(Protocol):
    """Somebody who is told how a training goes on."""

    def begin(self, trainer: Trainer) -> None:
        """The first epoch of this process is about to begin."""
        ...

    def step(self) -> None:
        """A step is done."""
        ...

    def row(self, row: Epoch, left: float) -> None:
        """An epoch is done; seconds that the others may take."""
        ...


@dataclass(frozen=True)
class Files:
    """Where a training writes, all beside each other.

    Attributes:
        weights: the safetensors file, written in the end.
    """

    weights: Path

    @property
    def curve(self) -> Path:
        """One row an epoch."""
        return self.weights.with_suffix(".csv")

    @property
    def card(self) -> Path:
        """How the weights were made and what they are worth, for people."""
        return self.weights.with_suffix(".json")

    @property
    def state(self) -> Path:
        """What the next epoch needs; it goes away in the end."""
        return self.weights.with_suffix(".state")


def train_in_pieces(
    network: str,
    dataset: str | Dataset,
    out: Path,
    training: Training,
    *,
    width: float = 1.0,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "auto",
    compiled: bool = False,
    minutes: float | None = None,
    command: str = "",
    show: Show | None = None,
) -> dict[str, Any] | None:
    """Train a network for as long as there is time, and go on where an earlier call stopped.

    After every epoch the state is on the disk. A call with the same settings goes on from there,
    also after a kill; one that finds everything done returns at once.

    Args:
        network: name of the network.
        dataset: the data set, or its name.
        out: the safetensors file; a curve (CSV) and a card (JSON) are written beside it.
        training: the recipe.
        width: factor on the channel counts.
        image_size: side of the images, for data sets that come in several; their own when None.
        device: torch device. It may differ from call to call.
        precision: see `Trainer`. ``"auto"`` may be another one on another device.
        compiled: see `Trainer`. It may differ from call to call, too.
        minutes: stop after the epoch in which they are over.
        command: what the card says that was run.
        show: is told of steps and epochs.

    Returns:
        The card; None if there are epochs left.

    Raises:
        OccupiedError: what is there is of a training with other settings.
        InputError: something unknown or out of range was given, the network and the data set do
            not go together, a file cannot be read or written, or the training diverged.
    """
    began = time.monotonic()
    where = find_device(str(device))
    network, width = _named(network, width)
    if out.suffix != ".safetensors":
        raise InputError(f"the file of the weights must be called FILE.safetensors, not {out}.")
    options = {} if image_size is None else {"size": image_size}
    data = load_dataset(dataset, **options)
    build = build_for(data, width)
    settings = {
        "network": network,
        "dataset": dataset_name(dataset),
        "dataset_options": options,
        "build": build,
        "images": _about(dataset, data),
        "training": asdict(training),
        "precision": precision,
    }
    settings = json.loads(json.dumps(settings))  # as it comes back from a file
    files = Files(out)
    if out.exists():
        about = read_metadata(out)
        _check_same(out, about, settings)
        return _card(about)
    module = load_network(network, **build, seed=training.seed)
    table = layers_to_json(trace(module, data.input_shape, name=network))
    trainer = Trainer(module, data, training, where, precision, compiled)
    _resume(trainer, files.state, settings)
    _save_curve(trainer, files)  # what cannot be written is better known now than in the end
    if show is not None and not trainer.finished:
        show.begin(trainer)
    own: list[float] = []
    while not trainer.finished:
        row = trainer.epoch(None if show is None else show.step)
        _save(trainer, files, settings)
        own.append(row.seconds)
        if show is not None:
            show.row(row, (training.epochs - row.epoch) * sum(own) / len(own))
        if minutes is not None and time.monotonic() - began >= 60 * minutes:
            break
    if not trainer.finished:
        return None
    half, before, after = trainer.round_to_half()
    about = {
        **settings,
        "command": command,
        "accuracy": trainer.accuracies(data),
        "half": {"stored": half, "val_float32": before, "val_float16": after},
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "seconds": round(sum(row.seconds for row in trainer.rows), 1),
        "devices": sorted({row.device for row in trainer.rows}),
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy")},
        "layer_table": table,
    }
    card = _card(about)
    replace_file(files.card, json.dumps(card, indent=1) + "\n", folders=True)
    save_checkpoint(out, trainer.result, about, half=half)
    files.state.unlink(missing_ok=True)
    return card


def _named(network: str, width: float) -> tuple[str, float]:
    """Use the name that a network of this width has, so that its weights can be found by it."""
    name = f"{network}_{round(100 * width):03d}"
    return (name, 1.0) if width != 1 and name in NETWORKS else (network, width)


def _card(about: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name != "layer_table"}


def _about(dataset: str | Dataset, data: Dataset) -> dict[str, Any]:
    """Say which images these are; of sets of one's own a digest does."""
    about = dict(data.about)
    if "sha256" in about or (isinstance(dataset, str) and dataset_name(dataset) in DATASETS):
        return about
    return {**about, "digest": data.digest(), "mean": list(data.mean), "std": list(data.std)}


def _check_same(path: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to go on with one training in the files of another."""
    found = {"precision": settings["precision"], **found}  # older files do not say it
    for name, value in settings.items():
        there = found.get(name)
        if there == value:
            continue
        if isinstance(value, dict) and isinstance(there, dict):
            name, value, there = next(
                (key, value.get(key), there.get(key))
                for key in {**there, **value}
                if value.get(key) != there.get(key)
            )
        raise OccupiedError(
            f"{path} is of a training with {name} = {there}, and now it is {value}: train into "
            "another file, or remove that one."
        )


def _resume(trainer: Trainer, path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        return
    try:
        state = torch.load(path, weights_only=True, map_location=trainer.device)
        found = json.loads(state["settings"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path} is no state of a training, or damaged: remove it.") from error
    _check_same(path, found, settings)
    try:
        trainer.restore(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not fit this version's training: remove it.") from error


def _save(trainer: Trainer, files: Files, settings: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save({**trainer.state(), "settings": json.dumps(settings)}, buffer)
    replace_file(files.state, buffer.getvalue(), folders=True)
    _save_curve(trainer, files)


def _save_curve(trainer: Trainer, files: Files) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    names = [each.name for each in fields(Epoch)]
    writer.writerow(names)
    for row in trainer.rows:
        values = (getattr(row, name) for name in names)
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    replace_file(files.curve, text.getvalue(), folders=True)
