"""What all plots share: how kinds of layers look, and how a figure becomes files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from haq_env.errors import InputError
from haq_env.layers import Layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PALE = "#333333", "#999999"


@dataclass(frozen=True)
class Look:
    """How a kind of layer is drawn: told apart by colour and, without colours, by shape.

    Attributes:
        label: what the legend says.
        colour: from the Okabe-Ito palette.
        marker: of points.
        hatch: of bars.
    """

    label: str
    colour: str
    marker: str
    hatch: str


DENSE = Look("dense convolution", "#009E73", "s", "")
POINTWISE = Look("pointwise convolution", "#0072B2", "o", "////")
DEPTHWISE = Look("depthwise convolution", "#D55E00", "^", "....")
GROUPED = Look("grouped", "#CC79A7", "P", "xxxx")
LINEAR = Look("linear", "#E69F00", "D", "----")
LOOKS = (DENSE, POINTWISE, DEPTHWISE, GROUPED, LINEAR)


def look(layer: Layer) -> Look:
    """Say how a layer is drawn; a pointwise convolution is a dense one of 1 x 1."""
    if layer.kind == "conv":
        return POINTWISE if layer.kernel == (1, 1) else DENSE
    return {"depthwise": DEPTHWISE, "grouped": GROUPED, "linear": LINEAR}[layer.kind]


def used_looks(layers: Sequence[Layer]) -> list[Look]:
    """Return the looks that occur in a network, in the order of the legend."""
    found = {look(layer).label for layer in layers}
    return [each for each in LOOKS if each.label in found]


def new_figure(width: float, height: float) -> Figure:
    """Make a figure that belongs to nobody: no pyplot state, no window. Sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the suffix says the format.

    Raises:
        InputError: the format is unknown, or the file cannot be written.
    """
    path = Path(path)
    known = figure.canvas.get_supported_filetypes()
    suffix = path.suffix[1:].lower()
    if suffix not in known:
        raise InputError(f"cannot plot to {path}: the suffix must be one of {', '.join(known)}.")
    # Without the date, the same search gives the same file.
    metadata = {"Date": None} if suffix == "svg" else None
    try:
        figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error
    return path
