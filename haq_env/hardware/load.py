"""From what a user names to a hardware model: names, TOML, JSON and CSV files, classes."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from haq_env.cost import CostTable
from haq_env.errors import InputError, unknown_name
from haq_env.hardware import HARDWARE, Hardware
from haq_env.hardware.table import MeasuredTable
from haq_env.imports import import_address
from haq_env.layers import LayerTable
from haq_env.registry import Registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

# Models that are no machine yet: a file has to give their parameters.
MODELS: Registry[Callable[..., Hardware]] = Registry(
    "hardware model",
    {
        "bismo": "haq_env.hardware.bismo:Bismo",
        "roofline": "haq_env.hardware.roofline:Roofline",
    },
)


def cost_table(
    spec: str | Path | Hardware | type[Hardware], layers: LayerTable, **parameters: Any
) -> CostTable:
    """Let a machine price a network, and see that it is this network that it has priced.

    Args:
        spec: see `load_hardware`.
        layers: the network.
        **parameters: see `load_hardware`.

    Raises:
        InputError: no such hardware, or what a user's own one returns is no table of these layers.
    """
    hardware = load_hardware(spec, **parameters)
    try:
        costs = hardware.cost_table(layers)
    except InputError:
        raise
    except Exception as error:
        what = f"hardware {type(hardware).__name__}: cost_table failed"
        raise InputError(f"{what}: {type(error).__name__}: {error}") from error
    if not isinstance(costs, CostTable):
        raise InputError(
            f"hardware {type(hardware).__name__}: cost_table must return a haq_env.cost.CostTable, "
            f"not {type(costs).__name__}."
        )
    if costs.names != layers.names:
        raise InputError(
            f"hardware {costs.hardware!r}: the cost table has {len(costs.names)} layers, and names "
            f"or order differ from the {len(layers)} layers of network {layers.network!r}."
        )
    return costs


def load_hardware(spec: str | Path | Hardware | type[Hardware], **parameters: Any) -> Hardware:
    """Find or build a hardware model.

    Args:
        spec: one of

            * a registered name, such as ``"bismo-edge"`` (`haq_env.hardware.HARDWARE`), or a model
              that needs parameters (`MODELS`);
            * the path of a .toml or .json file with the key ``model`` (one of these names) and the
              parameters of that model;
            * the path of a .csv file with measured costs (`haq_env.hardware.table`);
            * ``"package.module:Class"``, a class or function that returns a hardware model;
            * an object with a ``cost_table`` method, returned as it is, or its class.
        **parameters: parameters of the model; they win over those of a file.

    Raises:
        InputError: unknown name, file that cannot be read, unknown, missing or wrong parameter.
            The message names it and says what is allowed.
    """
    if isinstance(spec, type):
        return _build(spec, spec.__name__, parameters)
    if not isinstance(spec, (str, Path)):
        if not isinstance(spec, Hardware):
            raise InputError(
                "hardware must be a name, a file, 'package.module:Class' or an object with a "
                f"cost_table(layers) method, not {spec!r}."
            )
        return _no_parameters(spec, "a finished hardware object", parameters)
    suffix = Path(spec).suffix.lower()
    if suffix == ".csv":
        return _no_parameters(MeasuredTable(Path(spec)), f"the table {spec}", parameters)
    if suffix in (".toml", ".json"):
        path = Path(spec)
        settings = _read(path)
        model = settings.pop("model", None)
        if model is None:
            raise InputError(f"{path}: the key 'model' is missing; known: {_known_models()}.")
        factory = _model(model, f"{path}: ")
        return _build(factory, str(model), settings | parameters, f"{path}: ")
    name = str(spec)
    if ":" in name:
        return _build(import_address("hardware", name), name, parameters)
    if name not in HARDWARE and name not in MODELS:
        near = unknown_name("hardware", name, HARDWARE)
        raise InputError(f"{near} Or a .toml, .json or .csv file, or 'package.module:Class'.")
    return _build(_model(name), name, parameters)


def _no_parameters(hardware: Hardware, what: str, parameters: Mapping[str, Any]) -> Hardware:
    if parameters:
        raise InputError(f"{what} takes no parameters, but got {', '.join(sorted(parameters))}.")
    return hardware


def _known_models() -> str:
    return ", ".join(sorted({*MODELS, *HARDWARE}))


def _model(name: object, where: str = "") -> Any:
    for registry in (MODELS, HARDWARE):
        if isinstance(name, str) and name in registry:
            return registry[name]
    raise InputError(f"{where}{unknown_name('model', name, {*MODELS, *HARDWARE})}")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
        settings = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the hardware file {path}: {error}.") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise InputError(f"{path} is not valid {path.suffix[1:].upper()}: {error}.") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: must hold keys and values, not {type(settings).__name__}.")
    return settings


def _build(factory: Any, name: str, settings: Mapping[str, Any], where: str = "") -> Hardware:
    """Call a factory after the names of its parameters have been checked."""
    if not callable(factory):
        _no_parameters(factory, f"{where}{name}", settings)
        hardware = factory
    else:
        required, allowed = _parameters(factory)
        if allowed is not None and not allowed:
            _no_parameters(factory, f"{where}{name}", settings)
        for key in settings:
            if allowed is not None and key not in allowed:
                raise InputError(f"{where}{unknown_name(f'parameter of {name}', key, allowed)}")
        missing = [key for key in required if key not in settings]
        if missing:
            raise InputError(
                f"{where}{name} needs the parameter {missing[0]!r} (missing: "
                f"{', '.join(missing)}). Known: {', '.join(sorted(allowed or required))}."
            )
        try:
            hardware = factory(**settings)
        except InputError as error:
            raise InputError(f"{where}{error}") from error
    if not isinstance(hardware, Hardware) or isinstance(hardware, type):
        raise InputError(f"{where}{name} has no method cost_table(layers).")
    return hardware


def _parameters(factory: Callable[..., Any]) -> tuple[list[str], set[str] | None]:
    """Return the parameters that a factory needs and all that it takes (None: any)."""
    signature = inspect.signature(factory).parameters.values()
    named = [p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    allowed = {p.name for p in named}
    if not any(p.kind is p.VAR_KEYWORD for p in signature):
        return required, allowed
    # A factory with **overrides takes every field of what it returns, if it says what that is.
    try:
        result = get_type_hints(factory).get("return")
    except (NameError, TypeError):
        return required, None
    if isinstance(result, type) and is_dataclass(result):
        return required, allowed | {field.name for field in fields(result)}
    return required, None
