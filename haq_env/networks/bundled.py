"""Which trained weights belong to a network and a data set, and the layers they are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq_env.data import DATASETS, Dataset, dataset_argument, dataset_name, load_dataset
from haq_env.errors import InputError
from haq_env.layers import LayerTable
from haq_env.networks import NETWORKS

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).parent / "weights"  # <network>_<data set>.safetensors


@dataclass(frozen=True)
class Trained:
    """Where a trained network comes from.

    Attributes:
        layers: its layer table.
        checkpoint: the file of its weights; None if the module itself was given.
        build: keyword arguments of `load_network` for a network of this shape.
        dataset_options: keyword arguments for loading the data set as it was trained on.
    """

    layers: LayerTable
    checkpoint: Path | None = None
    build: tuple[tuple[str, Any], ...] = ()
    dataset_options: tuple[tuple[str, Any], ...] = ()


def build_for(data: Dataset, width: float) -> dict[str, Any]:
    """Return the keyword arguments of `load_network` for a network of these images and classes."""
    channels, side, _ = data.input_shape
    return {
        "classes": data.classes,
        "image_size": side,
        "width": width,
        "in_channels": channels,
    }


def find_trained(
    network: str | nn.Module,
    dataset: str | Dataset,
    checkpoint: str | Path | None = None,
    layers: LayerTable | None = None,
) -> Trained:
    """Find the weights and the layer table of a network.

    A checkpoint written by ``haq-env train`` carries its layer table, so nothing is traced and
    torch is not loaded for it.

    Args:
        network: a name, or a trained module.
        dataset: a name or a data set.
        checkpoint: safetensors file for a named network; the bundled one when None.
        layers: the layer table, where the network cannot be traced.

    Raises:
        InputError: unknown data set, no weights for a named network, a foreign checkpoint, or what
            is no network at all.
    """
    name = dataset_name(dataset)
    if isinstance(dataset, str) and ":" not in name:
        DATASETS[name]  # an unknown name is an error now, not at the first evaluation
    if not isinstance(network, str):
        if checkpoint is not None:
            raise InputError("a checkpoint goes with a network's name, not with a module.")
        _check_module(network)
        return Trained(layers or _traced(network, dataset))
    given = dataset_argument(dataset) if isinstance(dataset, str) else name
    path = _weights(network, name, given) if checkpoint is None else Path(checkpoint)
    about = _about(path)
    if about.get("network") != network:
        raise InputError(f"{path} holds weights of {about.get('network')!r}, not of {network!r}.")
    from haq_env.networks.layers_json import layers_from_json

    table = layers or layers_from_json(about.get("layer_table"))
    if not isinstance(dataset, str):
        check_size(table, dataset)
    options = about.get("dataset_options", {}) if about.get("dataset") == name else {}
    return Trained(
        table,
        path,
        tuple(sorted(about.get("build", {}).items())),
        tuple(sorted(options.items())),
    )


def check_size(layers: LayerTable, data: Dataset) -> None:
    """See that weights and costs of a named network are those for the data set's images.

    Args:
        layers: the network's layer table.
        data: the data set.

    Raises:
        InputError: it was trained, and its costs counted, on images of another size.
    """
    size, own = layers.input_shape[1:], data.input_shape[1:]
    if size != own:
        raise InputError(
            f"the network's weights and costs are those for images of {' x '.join(map(str, size))} "
            f"pixels, and data set {data.name!r} has {' x '.join(map(str, own))}."
        )


def bundled_pairs() -> list[tuple[str, str]]:
    """Return the pairs of network and data set that trained weights are shipped for."""
    about = [_about(path) for path in sorted(WEIGHTS.glob("*.safetensors"))]
    return [(str(each["network"]), str(each["dataset"])) for each in about]


def training_command(network: str, dataset: str) -> str:
    """Return the command that trains a network.

    Args:
        network: its name.
        dataset: the data set's, see `dataset_argument`.
    """
    return f"haq-env train {network} --dataset {dataset} --out file.safetensors"


def network_names() -> list[str]:
    """Return the names of all networks that can be built, torchvision's included."""
    import torchvision

    return [*NETWORKS, *torchvision.models.list_models(module=torchvision.models)]


def _weights(network: str, name: str, given: str) -> Path:
    path = WEIGHTS / f"{network}_{name}.safetensors"
    if not path.exists():
        if network not in network_names():
            from haq_env.networks.loading import unknown_network

            raise unknown_network(network)
        pairs = ", ".join(f"{n} for {d}" for n, d in bundled_pairs())
        raise InputError(
            f"no trained weights of network {network!r} for data set {name!r} are bundled (there "
            f"are: {pairs}). Make them with `{training_command(network, given)}` and give "
            "checkpoint='file.safetensors', or give your own trained torch module as the network."
        )
    return path


def _about(path: Path) -> dict[str, Any]:
    from haq_env.networks.checkpoint import read_metadata

    about = read_metadata(path)
    if "quantized" in about:
        raise InputError(
            f"{path} holds a quantized network, which haq_env.load_quantized reads; a search "
            "begins with the float one."
        )
    if "layer_table" not in about or "network" not in about:
        raise InputError(
            f"{path} does not say which network it is for. Load it into your module and give the "
            "module itself as the network."
        )
    return about


def _check_module(network: object) -> None:
    from torch import nn

    if not isinstance(network, nn.Module):
        what = "what makes one: call it first" if callable(network) else type(network).__name__
        raise InputError(f"network must be a name or a trained torch.nn.Module, not {what}.")
    if type(network).__module__.startswith("torch.jit"):
        raise InputError(
            "a scripted or traced network hides its layers: give the module that it was made of."
        )
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.itemsize != 4:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"{name} of the network is {kind}: finetuning and measuring are float32, so give "
                "network.float()."
            )


def _traced(network: nn.Module, dataset: str | Dataset) -> LayerTable:
    from haq_env.networks.trace import trace

    return trace(network, load_dataset(dataset).input_shape)
