"""What a hardware model and an agent need to know of a network: its quantizable layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args, overload

from haq_env.errors import InputError

Kind = Literal["conv", "depthwise", "grouped", "linear"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Layer:
    """One quantizable layer: a convolution or a matrix product.

    Attributes:
        name: the module's path in the network, for example ``"features.3.conv"``.
        kind: ``"conv"`` (dense), ``"depthwise"`` (one group per input channel), ``"grouped"``
            or ``"linear"``.
        in_channels: input channels (features of a linear layer).
        out_channels: output channels.
        kernel: kernel height and width; (1, 1) for a linear layer.
        stride: vertical and horizontal stride; (1, 1) for a linear layer.
        groups: convolution groups.
        in_size: height and width of the input map. For a linear layer, (positions, 1): how many
            vectors of one sample it is applied to, 1 for a classifier.
        out_size: height and width of the output map.
        signed_input: whether input activations can be negative, that is, do not come from a
            ReLU: one of their bits is then spent on the sign.

    Raises:
        InputError: a dimension is not positive, the kind is unknown or does not fit the groups.
    """

    name: str
    kind: Kind
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    signed_input: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"layer {self.name!r}: unknown kind {self.kind!r}; allowed: {', '.join(KINDS)}."
            )
        for field in ("in_channels", "out_channels", "groups"):
            number = _positive(self.name, field, getattr(self, field))
            object.__setattr__(self, field, number)
        for field in ("kernel", "stride", "in_size", "out_size"):
            pair = getattr(self, field)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise InputError(f"layer {self.name!r}: {field} must be a pair, not {pair!r}.")
            numbers = tuple(_positive(self.name, field, number) for number in pair)
            object.__setattr__(self, field, numbers)
        for field in ("in_channels", "out_channels"):
            if getattr(self, field) % self.groups:
                raise InputError(
                    f"layer {self.name!r}: {field} = {getattr(self, field)} is not a multiple of "
                    f"groups = {self.groups}."
                )
        expected = kind_of(self.in_channels, self.groups, linear=self.kind == "linear")
        if self.kind != expected:
            raise InputError(
                f"layer {self.name!r}: kind {self.kind!r} does not fit groups = {self.groups} and "
                f"in_channels = {self.in_channels}, which make it {expected!r}."
            )

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        taps = self.kernel[0] * self.kernel[1]
        return self.out_channels * (self.in_channels // self.groups) * taps

    @property
    def pixels(self) -> int:
        """Output positions of one sample."""
        return self.out_size[0] * self.out_size[1]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.weights * self.pixels

    @property
    def input_features(self) -> int:
        """Numbers in the input of one sample."""
        return self.in_channels * self.in_size[0] * self.in_size[1]


def kind_of(in_channels: int, groups: int, *, linear: bool = False) -> Kind:
    """Name the kind of a layer from its groups (docs/hardware.md section 2.2 for depthwise)."""
    if linear:
        return "linear" if groups == 1 else "grouped"
    if groups == 1:
        return "conv"
    return "depthwise" if groups == in_channels else "grouped"


def _positive(layer: str, field: str, value: object) -> int:
    """Return a positive integer as Python's own: a table by hand may come from NumPy."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"layer {layer!r}: {field} must be a positive integer, not {value!r}.")
    return int(value)


@dataclass(frozen=True)
class LayerTable(Sequence[Layer]):
    """A network as a hardware model sees it: its layers in execution order.

    Attributes:
        network: what the network is called in reports.
        layers: the quantizable layers.
        input_shape: channels, height and width of one input sample.
        float_parameters: parameters that no choice of bits touches and that stay in fp32:
            biases and the affine parameters of normalisation layers.
        uncounted: modules that have weights and are none of the layers, such as attention's
            projections, and products of activations: they stay in fp32, and no cost but the size
            of weights counts them.
    """

    network: str
    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...] = (3, 224, 224)
    float_parameters: int = 0
    uncounted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.uncounted, str) or not isinstance(self.float_parameters, Integral):
            raise InputError(
                f"network {self.network!r}: uncounted must be a tuple of names, and "
                "float_parameters an integer."
            )
        object.__setattr__(self, "uncounted", tuple(self.uncounted))
        if self.float_parameters < 0:
            raise InputError(f"network {self.network!r}: float_parameters must not be negative.")
        if not self.layers:
            raise InputError(f"network {self.network!r} has no convolution and no linear layer.")
        names = [layer.name for layer in self.layers]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise InputError(f"network {self.network!r}: layer names occur twice: {doubled}.")

    @property
    def uncounted_line(self) -> str:
        """One sentence for people on what is uncounted; empty where nothing is."""
        if not self.uncounted:
            return ""
        first, *others = self.uncounted
        more = f" and {len(others)} other{'s' * (len(others) > 1)}" if others else ""
        return f"In floats, and counted in no cost but the size: {first}{more}."

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Quantizable weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Layer, ...]: ...
    def __getitem__(self, index: int | slice) -> Layer | tuple[Layer, ...]:
        return self.layers[index]
