"""Building networks from a name, a factory or a module that is already there."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import nn

from haq_env.errors import InputError, unknown_name
from haq_env.imports import import_address
from haq_env.layers import LayerTable
from haq_env.networks import NETWORKS
from haq_env.networks.scaling import with_input_channels
from haq_env.networks.trace import trace

# The auxiliary heads of these two serve training alone and are no part of what runs.
_PLAIN = {"aux_logits": False, "init_weights": True}


def load_network(
    network: str | nn.Module,
    *,
    classes: int = 1000,
    image_size: int = 224,
    width: float = 1.0,
    in_channels: int = 3,
    seed: int = 0,
) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        network: a name in `NETWORKS`; any torchvision classification model's name; or
            ``"package.module:factory"``, where the factory returns a module and is given those
            of the other arguments that its signature names; or a module, which is returned as
            it is, whatever the other arguments say.
        classes: outputs of the classifier.
        image_size: height and width of the images in pixels; small images get fewer strides.
        width: factor on the channel counts, above 0 and at most 8; torchvision's models know
            no width but 1, apart from those in `NETWORKS`.
        in_channels: channels of the images.
        seed: seed of the weights. The global generator is left as it was.

    Returns:
        The network in training mode, on the CPU.

    Raises:
        InputError: the name is unknown, a setting is out of range, or building fails.
    """
    if isinstance(network, nn.Module):
        return network
    if not isinstance(network, str):
        raise InputError(f"a network is a name or a torch.nn.Module, not {network!r}.")
    settings = _checked(
        classes=classes, image_size=image_size, width=width, in_channels=in_channels
    )
    with _seeded(seed), torch.device("cpu"):
        if ":" in network:
            return _from_factory(network, settings)
        if network in NETWORKS:
            return _called(network, NETWORKS[network], settings)
        return _from_torchvision(network, **settings)


def load_layers(
    network: str | nn.Module,
    *,
    classes: int = 1000,
    image_size: int = 224,
    width: float = 1.0,
    in_channels: int = 3,
) -> LayerTable:
    """Return the layer table of a network.

    Args:
        network: as in `load_network`.
        classes: as in `load_network`.
        image_size: as in `load_network`.
        width: as in `load_network`.
        in_channels: as in `load_network`.

    Returns:
        The quantizable layers in execution order for an image of
        [in_channels, image_size, image_size].

    Raises:
        InputError: as in `load_network` and `haq_env.networks.trace.trace`.
    """
    _checked(classes=classes, image_size=image_size, width=width, in_channels=in_channels)
    module = load_network(
        network, classes=classes, image_size=image_size, width=width, in_channels=in_channels
    )
    name = network if isinstance(network, str) else None
    return trace(module, (in_channels, image_size, image_size), name=name)


def unknown_network(name: str) -> InputError:
    """Build the error for a name that is no network's."""
    known = torchvision.models.list_models(module=torchvision.models)
    near = [each for each in known if name and each.startswith(name)]
    near = near or difflib.get_close_matches(name, known, n=1)
    listed = str(unknown_name("network", name, {*NETWORKS, *near})).rstrip(".")
    return InputError(
        f"{listed}, or any torchvision classification model, or package.module:factory."
    )


def _checked(**settings: Any) -> dict[str, Any]:
    for name in ("classes", "image_size", "in_channels"):
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a positive integer, not {value!r}.")
    width = settings["width"]
    number = isinstance(width, int | float) and not isinstance(width, bool)
    if not number or not math.isfinite(width) or not 0 < width <= 8:
        raise InputError(f"width must be a number above 0 and at most 8, not {width!r}.")
    return settings


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # torch.manual_seed would seed the accelerators too, which nothing here restores.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _from_torchvision(
    name: str, classes: int, image_size: int, width: float, in_channels: int
) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_network(name)
    if width != 1:
        scalable = ", ".join(NETWORKS)
        raise InputError(f"{name} has no width multiplier (width = {width}); {scalable} have one.")
    settings: dict[str, Any] = {"num_classes": classes, "weights": None}
    if name in ("googlenet", "inception_v3"):
        settings |= _PLAIN
    elif name.startswith("vit_"):
        settings["image_size"] = image_size
    elif name.startswith("maxvit"):
        settings["input_size"] = (image_size, image_size)
    built = _called(name, torchvision.models.get_model_builder(name), settings)
    return with_input_channels(built, in_channels)


def _from_factory(address: str, settings: dict[str, Any]) -> nn.Module:
    factory = import_address("network", address)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise InputError(f"network {address!r} is not callable but {factory!r}.")
    return _called(address, factory, _accepted(factory, settings))


def _accepted(factory: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return {}
    keywords = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return {name: value for name, value in settings.items() if name in keywords}


def _kind(thing: object) -> str:
    """Say what a factory has returned, which may be too large to be printed."""
    if thing is None or isinstance(thing, bool | int | float):
        return repr(thing)
    hint = " (weights go into a module with load_state_dict)" if isinstance(thing, Mapping) else ""
    return f"an object of type {type(thing).__name__}{hint}"


def _called(name: str, factory: Callable[..., Any], settings: dict[str, Any]) -> nn.Module:
    try:
        network = factory(**settings)
    except Exception as error:
        chosen = ", ".join(f"{key} = {value}" for key, value in settings.items())
        raise InputError(
            f"network {name!r} cannot be built with {chosen or 'no arguments'}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {name!r}: the factory returned {_kind(network)}, no nn.Module.")
    return network
