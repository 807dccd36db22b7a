"""Layer tables as JSON, so that an environment can be built from a file without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from haq_env.errors import InputError, unknown_name
from haq_env.layers import Layer, LayerTable

_FIELDS = tuple(field.name for field in fields(Layer))
_PAIRS = ("kernel", "stride", "in_size", "out_size")


def layers_to_json(table: LayerTable) -> dict[str, Any]:
    """Turn a layer table into what `json.dumps` takes.

    Returns:
        The keys ``network``, ``input_shape``, ``float_parameters`` and ``layers``, a list of one
        object per layer with the fields of `Layer`; ``uncounted`` where there is something.
    """
    others = {"uncounted": list(table.uncounted)} if table.uncounted else {}
    return {
        "network": table.network,
        "input_shape": list(table.input_shape),
        "float_parameters": table.float_parameters,
        "layers": [_plain(layer) for layer in table],
        **others,
    }


def layers_from_json(content: object) -> LayerTable:
    """Build the layer table that `layers_to_json` wrote.

    Args:
        content: what `json.loads` returned.

    Raises:
        InputError: a field is missing, unknown or of the wrong type, or a layer is impossible.
    """
    content = _object(content, "the layer table")
    missing = [key for key in ("network", "layers") if key not in content]
    if missing:
        raise InputError(f"the layer table lacks {missing[0]!r}.")
    layers = content["layers"]
    if not isinstance(layers, list):
        raise InputError(f"'layers' of the layer table must be a list, not {layers!r}.")
    return LayerTable(
        network=str(content["network"]),
        layers=tuple(_layer(layer) for layer in layers),
        input_shape=_integers(content.get("input_shape", [3, 224, 224]), "input_shape"),
        float_parameters=_integers([content.get("float_parameters", 0)], "float_parameters")[0],
        uncounted=_texts(content.get("uncounted", []), "uncounted"),
    )


def _texts(content: object, field: str) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(each, str) for each in content):
        raise InputError(f"{field!r} of the layer table must be a list of texts, not {content!r}.")
    return tuple(content)


def _plain(layer: Layer) -> dict[str, Any]:
    values = asdict(layer)
    return values | {name: list(values[name]) for name in _PAIRS}


def _layer(content: object) -> Layer:
    values = dict(_object(content, "a layer of the layer table"))
    for key in values:
        if key not in _FIELDS:
            raise unknown_name("layer field", key, _FIELDS)
    for key in ("name", "kind", "in_channels", "out_channels"):
        if key not in values:
            raise InputError(f"layer {values.get('name', '?')!r} of the table lacks {key!r}.")
    if not isinstance(values["name"], str):
        raise InputError(f"the name of a layer must be text, not {values['name']!r}.")
    if not isinstance(values["kind"], str):
        raise InputError(f"layer {values['name']!r}: kind must be text, not {values['kind']!r}.")
    if not isinstance(values.get("signed_input", False), bool):
        raise InputError(f"layer {values['name']!r}: signed_input must be true or false.")
    for key in _PAIRS:
        if key in values:
            values[key] = _integers(values[key], f"layer {values['name']!r}: {key}")
    return Layer(**values)


def _object(content: object, what: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise InputError(f"{what} must be a JSON object, not {type(content).__name__}.")
    return content


def _integers(content: object, what: str) -> tuple[int, ...]:
    plain = isinstance(content, list | tuple) and all(type(item) is int for item in content)
    if not plain or not isinstance(content, list | tuple) or min(content, default=0) < 0:
        raise InputError(f"{what} must be integers that are not negative, not {content!r}.")
    return tuple(content)
