"""Check the parameters of a hardware model against the annotations of its dataclass."""

from __future__ import annotations

import math
import types
from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from haq_env.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WORDS = {
    int: "a positive integer",
    float: "a positive number",
    str: "text",
    bool: "true or false",
    type(None): "None",
}


LARGEST = 2**31  # of an integer: costs are products of several, in 64 bits


def check_parameters(model: DataclassInstance, may_be_zero: Collection[str] = ()) -> None:
    """Check the type of every field of a dataclass, and that its numbers are positive.

    Meant for ``__post_init__``: the fields of a hardware model come from Python, from the command
    line and from TOML files alike, and a wrong one must be named in all three.

    Args:
        model: the instance; annotations may be int, float, str, bool, None, literals and unions
            of them.
        may_be_zero: fields of which 0 is a sensible value.

    Numbers of NumPy become those of Python.

    Raises:
        InputError: names the model, the field, its value and what is allowed.
    """
    hints = get_type_hints(type(model))
    for field in fields(model):
        value = getattr(model, field.name)
        hint = hints[field.name]
        good = any(_is_a(value, option) for option in _options(hint))
        if good and isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            whole = isinstance(value, (int, np.integer)) and float not in _options(hint)
            if whole and abs(int(value)) > LARGEST:
                raise InputError(
                    f"{type(model).__name__}: {field.name} must be at most {LARGEST:,}."
                )
            number = float(value)
            zero = number == 0 and field.name in may_be_zero
            good = math.isfinite(number) and (number > 0 or zero)
        if not good:
            raise InputError(
                f"{type(model).__name__}: {field.name} must be {_describe(hint)}, not {value!r}."
            )
        if isinstance(value, np.number):  # short ones would overflow in products
            object.__setattr__(model, field.name, value.item())


def _options(hint: Any) -> tuple[Any, ...]:
    union = get_origin(hint) in (Union, types.UnionType)
    return get_args(hint) if union else (hint,)


def _is_a(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint in (int, float):  # true and false are integers in Python, but not sizes
        kinds = (int, np.integer) if hint is int else (int, float, np.number)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    words: list[str] = []
    for option in _options(hint):
        if get_origin(option) is Literal:
            words.extend(repr(choice) for choice in get_args(option))
        else:
            words.append(_WORDS.get(option, getattr(option, "__name__", str(option))))
    return " or ".join(words)
