"""A policy for other tools: HAWQ's ``bit_config``, NNCF's ``bitwidth_per_scope``, and plain CSV.

A policy names layers by their module paths. HAWQ and NNCF name the quantizers that they put into
a network, which depends on how they do it, so what is written has their form with our paths in it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from haq_env.errors import InputError, unknown_name
from haq_env.policy import Policy, as_bits

HEAD = ("layer", "w_bits", "a_bits")
MOST_BYTES = 10_000_000  # of a CSV file that is read


def to_csv(policy: Policy) -> str:
    """Write ``layer,w_bits,a_bits``, a line for each layer; `from_csv` reads it back."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows(zip(policy.names, policy.w_bits, policy.a_bits, strict=True))
    return text.getvalue()


def to_hawq(policy: Policy) -> str:
    """Write a dictionary as in HAWQ's ``bit_config.py``: module to bits, in execution order.

    ``"PATH.quant_act"`` is the quantizer of a layer's input, as the `QuantAct` before a layer in
    HAWQ, and ``"PATH"`` the layer whose weights are quantized. The JSON is a Python literal, too.
    """
    config: dict[str, int] = {}
    for name, w_bits, a_bits in zip(policy.names, policy.w_bits, policy.a_bits, strict=True):
        config |= {f"{name}.quant_act": a_bits, name: w_bits}
    return json.dumps(config, indent=1) + "\n"


def to_nncf(policy: Policy) -> str:
    """Write the part of an NNCF configuration that sets bitwidths by hand.

    It is ``compression`` with ``initializer.precision.bitwidth_per_scope``, pairs of bits and
    scope: ``"PATH|WEIGHT"`` and ``"PATH|INPUT"``. NNCF's own scopes have class names besides the
    path (``"AlexNet/Sequential[features]/NNCFConv2d[0]/conv2d_0|WEIGHT"``), and activations are
    those of the operation before the layer (``|OUTPUT``).
    """
    pairs = []
    for name, w_bits, a_bits in zip(policy.names, policy.w_bits, policy.a_bits, strict=True):
        pairs += [[w_bits, f"{name}|WEIGHT"], [a_bits, f"{name}|INPUT"]]
    precision = {"type": "manual", "bitwidth_per_scope": pairs}
    compression = {"algorithm": "quantization", "initializer": {"precision": precision}}
    return json.dumps({"compression": compression}, indent=1) + "\n"


FORMATS: Mapping[str, Callable[[Policy], str]] = MappingProxyType(
    {"csv": to_csv, "hawq": to_hawq, "nncf": to_nncf}
)


def from_csv(text: str, where: str = "the table") -> Policy:
    """Read what `to_csv` or a spreadsheet has written; the order of lines is that of layers.

    Args:
        text: the table.
        where: what error messages call it.

    Raises:
        InputError: another head, a layer twice or without a name, bits that are not 1 to 8, or no
            layer at all.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    names: list[str] = []
    pairs: list[list[int]] = []
    try:
        head = next(reader, [])
        if tuple(cell.strip() for cell in head) != HEAD:
            raise ValueError(f"the first line must be {','.join(HEAD)}")
        for row in reader:
            if not row:
                continue
            if len(row) != len(HEAD):
                raise ValueError(f"{len(row)} columns instead of {len(HEAD)}")
            name, *bits = (cell.strip() for cell in row)
            if not name or name in names:
                raise ValueError(f"layer {name!r} is there twice" if name else "no layer's name")
            if not all(cell.isascii() and cell.isdecimal() for cell in bits):
                raise ValueError("bits must be integers from 1 to 8")
            pairs.append([int(cell) for cell in bits])
            as_bits(pairs[-1:])
            names.append(name)
        if not names:
            raise ValueError("there is no layer")
    except (ValueError, csv.Error) as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{where}: line {reader.line_num} cannot be used: {reason}.") from error
    return Policy(as_bits(pairs), tuple(names))


def convert(source: str | Path, target: str | Path, form: str | None = None) -> Path:
    """Convert a file.

    Args:
        source: a ``policy.json``, or a ``.csv`` table.
        target: the file to write.
        form: ``"csv"``, ``"hawq"`` or ``"nncf"`` for a policy; None turns a table into a policy.

    Returns:
        The target.

    Raises:
        InputError: the source cannot be read, the form is unknown or missing, or the target cannot
            be written.
    """
    from haq_env.files import replace_file

    source, target = Path(source), Path(target)
    if form is not None and form not in FORMATS:
        raise unknown_name("form", form, FORMATS)
    if source.suffix.lower() == ".csv":
        policy = from_csv(_read(source), str(source))
    else:
        policy = Policy.load(source)
        if form is None:
            raise InputError(f"say what to turn {source} into: {', '.join(FORMATS)}.")
    if form is None:
        policy.save(target)
        return target
    try:
        content = FORMATS[form](policy).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{source}: the name of a layer is no text: {error}.") from error
    replace_file(target, content)
    return target


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"{path} is larger than {MOST_BYTES:,} bytes.")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}.") from error
