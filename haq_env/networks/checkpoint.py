"""Weights and metadata in one safetensors file.

Only safetensors is read: a pickle can run code. Metadata can be read without torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq_env.errors import InputError
from haq_env.files import replace_file

if TYPE_CHECKING:
    from torch import Tensor, nn

# The header's text fields hold one entry: this key, with all metadata as JSON.
_KEY = "haq_env"
# The format allows 100 MB. A header of ours has about 150 bytes per tensor and layer.
_LARGEST_HEADER = 16 * 2**20


def save_checkpoint(
    path: str | os.PathLike[str],
    module: nn.Module,
    metadata: Mapping[str, Any],
    *,
    half: bool = False,
) -> None:
    """Write a network's parameters and buffers with metadata.

    Args:
        path: where to; folders are made, and a file that is there is replaced at once.
        module: the network.
        metadata: anything that JSON holds, such as accuracies and `layers_to_json`.
        half: store weights in fp16, which halves the file. Vectors (biases, normalisation) stay in
            fp32: they are few, and variances may not fit.

    Raises:
        InputError: the metadata is not JSON, or the file cannot be written.
    """
    import torch

    tensors = _state(module)
    if half:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dim() > 1:
                tensors[name] = tensor.detach().to(torch.float16)
    save_tensors(path, tensors, metadata)


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors with metadata; see `save_checkpoint`, which takes a network's own.

    Raises:
        InputError: the metadata is not JSON, or the file cannot be written.
    """
    from safetensors.torch import save

    try:
        text = json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the checkpoint's metadata is not JSON: {error}.") from error
    # Tied tensors share memory, which the format refuses.
    stored = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    replace_file(Path(path), save(stored, metadata={_KEY: text}), folders=True)


def load_checkpoint(path: str | os.PathLike[str], module: nn.Module) -> dict[str, Any]:
    """Read weights into a network.

    Args:
        path: a file of `save_checkpoint`, or any safetensors file of the same network.
        module: the network; tensors keep its types and devices. It is unchanged if this fails.

    Returns:
        The metadata, empty if there is none.

    Raises:
        InputError: the file is missing, damaged, no safetensors file, or of another architecture.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path} is damaged: {error}.") from error
    state = _state(module)
    _check_fits(path, state, stored)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(stored[name])
    return metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint's metadata without its weights and without torch.

    Args:
        path: a safetensors file.

    Returns:
        What was given to `save_checkpoint`; empty if another program wrote the file.

    Raises:
        InputError: the file is missing, damaged or no safetensors file.
    """
    header = _header(Path(path)).get("__metadata__", {})
    text = header.get(_KEY) if isinstance(header, dict) else None
    if text is None:
        return {}
    try:
        metadata = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError(f"checkpoint {path} is damaged: its metadata is not a JSON object.")
    return metadata


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = int.from_bytes(start, "little")
            # Read no more than a header may have, whatever the first bytes claim.
            text = file.read(size) if len(start) == 8 and size <= _LARGEST_HEADER else b""
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist.") from error
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error}.") from error
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if len(text) != size or not isinstance(header, dict):
        if start.startswith((b"PK\x03\x04", b"\x80")):
            raise InputError(
                f"checkpoint {path} is a pickle, which can run code when it is read; only "
                "safetensors files are read."
            )
        raise InputError(f"checkpoint {path} is damaged or no safetensors file.")
    return header


def _state(module: nn.Module) -> dict[str, Tensor]:
    import torch

    # Modules may put other things than tensors into their state.
    return {name: value for name, value in module.state_dict().items() if torch.is_tensor(value)}


def _check_fits(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> None:
    problems = []
    missing = [name for name in state if name not in stored]
    if missing:
        problems.append(f"it lacks {_some(missing)}")
    unexpected = [name for name in stored if name not in state]
    if unexpected:
        problems.append(f"it has {_some(unexpected)}, which the network has not")
    misshaped = [
        f"{name} of shape {list(stored[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    if misshaped:
        problems.append(f"it has {_some(misshaped)}")
    if problems:
        raise InputError(f"checkpoint {path} is of another architecture: {'; '.join(problems)}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
