"""Train a float network in one go: a few epochs on small images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from haq_env.data import dataset_name, load_dataset
from haq_env.errors import InputError
from haq_env.evaluation.checks import check_fits
from haq_env.evaluation.device import find_device
from haq_env.evaluation.finetune import Images, accuracy, finetune
from haq_env.evaluation.recipe import Recipe
from haq_env.networks import load_network
from haq_env.networks.bundled import build_for
from haq_env.networks.checkpoint import check_writable, save_checkpoint
from haq_env.networks.layers_json import layers_to_json
from haq_env.networks.trace import trace


def train_float(
    network: str,
    dataset: str,
    out: Path,
    *,
    width: float = 1.0,
    image_size: int | None = None,
    epochs: int = 30,
    learning_rate: float = 0.1,
    batch_size: int = 32,
    weight_decay: float = 5e-4,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train a network from nothing and write a checkpoint that environments can use.

    Args:
        network: name of the network.
        dataset: name of the data set.
        out: the safetensors file; it holds weights, settings, accuracies and the layer table.
        width: factor on the channel counts.
        image_size: side of the images, for data sets that come in several; their own when None.
        epochs: passes over the training images.
        learning_rate: of the first step; it follows a cosine down to zero.
        batch_size: images a step.
        weight_decay: on weights of convolutions and linear layers.
        seed: of the first weights and of the order of images.
        device: torch device.

    Returns:
        The metadata of the checkpoint.

    Raises:
        InputError: unknown network or data set, a setting out of range, or no place to write.
    """
    for name, number in (("epochs", epochs), ("batch_size", batch_size)):
        if number < 1:
            raise InputError(f"{name} must be 1 or more, not {number}.")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be 0 or more, not {seed}.")
    check_writable(out)
    where = find_device(device)
    options = {} if image_size is None else {"size": image_size}
    data = load_dataset(dataset, **options)
    build = build_for(data, width)
    module = load_network(network, **build, seed=seed).to(where)
    images = {part: Images(getattr(data, part), data, where) for part in ("train", "val", "test")}
    recipe = Recipe(
        steps=epochs * max(1, len(data.train) // batch_size),
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        max_norm=5.0,
    )
    module = module.to(memory_format=torch.channels_last)
    # what can be used in the end must be known before the epochs are spent
    layers = layers_to_json(trace(module, data.input_shape, name=network))
    check_fits(module, data, images["train"].batch(slice(0, 1)))
    loss = finetune(module, images["train"], recipe, seed)
    if not math.isfinite(loss):
        raise InputError(f"the training diverged (loss {loss}): take a smaller learning rate.")
    about = {
        "network": network,
        "dataset": dataset_name(dataset),
        "dataset_options": options,
        "build": build,
        "images": dict(data.about),
        "accuracy": {part: accuracy(module, images[part]) for part in images},
        "loss": loss,
        "training": {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "weight_decay": weight_decay,
            "seed": seed,
        },
        "versions": {"torch": torch.__version__},
        "layer_table": layers,
    }
    save_checkpoint(out, module, about)
    return about
