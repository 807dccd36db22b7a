"""A policy: how many bits each layer's weights and activations get, and its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from haq_env.errors import InputError
from haq_env.files import replace_file

MIN_BITS, MAX_BITS = 1, 8
ALL_BITS = range(MIN_BITS, MAX_BITS + 1)
WEIGHT, ACTIVATION = 0, 1  # the two sides of a layer: last axis of every bits array
SCHEMA = 1  # version of policy.json

Bits = NDArray[np.int64]


def to_digits(bits: Bits) -> tuple[str, str]:
    """Write a policy [L, 2] as two texts, weights and activations: a digit for each layer."""
    w_bits, a_bits = ("".join(map(str, bits[:, side].tolist())) for side in (WEIGHT, ACTIVATION))
    return w_bits, a_bits


def from_digits(w_bits: str, a_bits: str) -> Bits:
    """Read what `to_digits` wrote, int64 [L, 2].

    Raises:
        InputError: it is not one digit from 1 to 8 for both sides of each layer.
    """
    if len(w_bits) != len(a_bits) or not set(w_bits + a_bits) <= set("12345678"):
        raise InputError("a policy is one digit from 1 to 8 for both sides of each layer.")
    return as_bits([[int(w), int(a)] for w, a in zip(w_bits, a_bits, strict=True)])


def as_bits(bits: ArrayLike, layers: int | None = None) -> Bits:
    """Check an array of bits and return it as int64, shape [..., L, 2], values 1 to 8.

    Args:
        bits: weight and activation bits on the last axis, layers on the one before.
        layers: how many layers there must be; not checked when None.

    Raises:
        InputError: wrong shape, not integers, or a width outside 1 to 8.
    """
    try:
        array = np.asarray(bits)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"bits must be an array of integers: {error}.") from error
    if array.ndim < 2 or array.shape[-1] != 2 or (layers and array.shape[-2] != layers):
        expected = f"[..., {layers or 'layers'}, 2]"
        raise InputError(f"bits must have the shape {expected}, not {list(array.shape)}.")
    if array.dtype.kind not in "iu" and not (
        array.dtype.kind == "f" and np.array_equal(array, np.floor(array))
    ):
        raise InputError("bits must be integers.")
    bad = array[(array < MIN_BITS) | (array > MAX_BITS)]
    if bad.size:
        raise InputError(f"bits must be {MIN_BITS} to {MAX_BITS}, not {bad.flat[0]}.")
    return array.astype(np.int64, copy=False)


def as_policy(bits: ArrayLike, layers: int) -> Bits:
    """Check one policy and return it as int64, shape [L, 2], values 1 to 8.

    Args:
        bits: weight and activation bits of every layer.
        layers: how many layers there must be.

    Raises:
        InputError: as `as_bits`, or several policies.
    """
    checked = as_bits(bits, layers)
    if checked.ndim != 2:
        raise InputError(f"bits must be one policy, [{layers}, 2], not {list(checked.shape)}.")
    return checked


def uniform(layers: int, w_bits: int, a_bits: int) -> Bits:
    """Return the policy that gives every layer the same bits, shape [layers, 2]."""
    return as_bits(np.tile(np.array([w_bits, a_bits]), (layers, 1)))


@dataclass(frozen=True, eq=False)
class Policy:
    """The bits of every layer of one network, with what is known of it.

    Attributes:
        bits: int64 [L, 2], weight bits and activation bits.
        names: the layers' names, L of them.
        record: what else the file says: network, data set, hardware, budget, accuracies, cost,
            seed, versions. Values must fit JSON.
    """

    bits: Bits
    names: tuple[str, ...]
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", as_bits(self.bits, len(self.names)))
        taken = {"schema", "layers"} & self.record.keys()
        if taken:
            raise InputError(f"the record cannot hold {taken.pop()!r}: the file's own keys.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Policy):
            return NotImplemented
        same = np.array_equal(self.bits, other.bits) and self.names == other.names
        return same and self.record == other.record

    __hash__ = None  # type: ignore[assignment]  # the record is a dictionary

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the bits, so that a policy is taken wherever bits are."""
        return np.array(self.bits, dtype=dtype, copy=copy)

    @property
    def w_bits(self) -> list[int]:
        """Weight bits of every layer."""
        return [int(bits) for bits in self.bits[:, WEIGHT]]

    @property
    def a_bits(self) -> list[int]:
        """Activation bits of every layer."""
        return [int(bits) for bits in self.bits[:, ACTIVATION]]

    def save(self, path: str | Path) -> None:
        """Write ``policy.json``: schema version, layers with their bits, then the record.

        The file is replaced in one step, so a reader never sees half of it.

        Raises:
            InputError: the file cannot be written; what was there stays.
        """
        layers = [
            {"name": name, "w_bits": w, "a_bits": a}
            for name, w, a in zip(self.names, self.w_bits, self.a_bits, strict=True)
        ]
        path = Path(path)
        text = json.dumps({"schema": SCHEMA, "layers": layers} | self.record, indent=1)
        replace_file(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path, names: Sequence[str] | None = None) -> Policy:
        """Read ``policy.json``.

        Args:
            path: the file.
            names: names of the layers it must be for, in order; not checked when None.

        Raises:
            InputError: the file is missing, truncated, of another schema or for other layers.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the policy file {path}: {error}.") from error
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} is not a complete policy file: {error}. Was its writing cut off?"
            ) from error
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else type(document)
            raise InputError(f"{path}: policy schema must be {SCHEMA}, not {found!r}.")
        layers = document.pop("layers", None)
        document.pop("schema")
        try:
            found_names = tuple(str(layer["name"]) for layer in layers)
            pairs = [[layer["w_bits"], layer["a_bits"]] for layer in layers]
        except (TypeError, KeyError) as error:
            raise InputError(
                f"{path}: 'layers' must be a list of name, w_bits and a_bits ({error!r})."
            ) from error
        strange_bits = [bits for pair in pairs for bits in pair if type(bits) is not int]
        if strange_bits:
            raise InputError(f"{path}: bits must be integers, not {strange_bits[0]!r}.")
        try:
            bits = as_bits(pairs, len(found_names))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if names is not None and found_names != tuple(names):
            strange = [name for name in found_names if name not in names][:3]
            missing = [name for name in names if name not in found_names][:3]
            difference = "the order differs"
            if strange or missing:
                kind = "unknown here" if strange else "missing there"
                difference = f"{kind}: {', '.join(strange or missing)}"
            raise InputError(
                f"{path} is a policy for {len(found_names)} other layers than this network's "
                f"{len(names)}; {difference}."
            )
        return cls(bits, found_names, document)
