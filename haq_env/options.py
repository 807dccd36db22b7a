"""Options that several commands share, as frozen dataclasses that tyro turns into flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from haq_env.errors import InputError

if TYPE_CHECKING:
    from haq_env.cost import CostTable
    from haq_env.layers import LayerTable
    from haq_env.policy import Bits

OptionalInt = Annotated[int | None, arg(metavar="INT")]
OptionalPath = Annotated[Path | None, arg(metavar="FILE")]
CacheFile = Annotated[Positional[Path], arg(metavar="PATH", help="The SQLite file.")]
Network = Annotated[
    Positional[str],
    arg(
        metavar="NETWORK",
        help="Built-in network (see `haq-env networks`), name of a torchvision classification "
        "model, or package.module:factory.",
    ),
]


@dataclass(frozen=True)
class Build:
    """How the network is built."""

    image_size: OptionalInt = None
    """Height and width of the images, in pixels: 224 unless a policy says otherwise."""
    channels: OptionalInt = None
    """Channels of the images: 3 unless a policy says otherwise."""
    classes: OptionalInt = None
    """Outputs of the classifier: 1000 unless a policy says otherwise."""
    width: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Factor on the channel counts of built-in networks: 1 unless a policy says otherwise."""

    def layers(self, network: str, known: Mapping[str, Any] | None = None) -> LayerTable:
        """Trace a network.

        Args:
            network: its name or address.
            known: how it is built where nothing else is said.
        """
        from haq_env.networks import load_layers

        given = {
            "image_size": self.image_size,
            "in_channels": self.channels,
            "classes": self.classes,
            "width": self.width,
        }
        given = {name: value for name, value in given.items() if value is not None}
        try:
            return load_layers(network, **{**(known or {}), **given})
        except InputError as error:
            if ":" not in network or "does not accept an input" not in str(error):
                raise
            hint = "--image-size, --channels and --classes say what it is built for."
            raise InputError(f"{error} {hint}") from error


@dataclass(frozen=True)
class Machine:
    """What the network runs on."""

    hardware: str = "bismo-edge"
    """Name (see `haq-env hardware`), .toml, .json or .csv file, or package.module:Class."""
    batch: OptionalInt = None
    """Samples computed at once; the hardware's own when not given."""

    def costs(self, layers: LayerTable) -> CostTable:
        """Compute the cost table of a network."""
        from haq_env.hardware.load import cost_table

        parameters = {} if self.batch is None else {"batch": self.batch}
        return cost_table(self.hardware, layers, **parameters)


@dataclass(frozen=True)
class BitChoice:
    """Bits of weights and activations: 8 everywhere, unless something else is said."""

    bits: OptionalInt = None
    """Bits of all weights and activations; here of the first and the last layer, too."""
    w_bits: OptionalInt = None
    """Bits of all weights."""
    a_bits: OptionalInt = None
    """Bits of all activations."""
    policy: OptionalPath = None
    """A policy.json with bits for each layer."""

    def check(self) -> None:
        """Refuse what contradicts itself or cannot be read, before any work is done."""
        from haq_env.policy import Policy

        given = [name for name in ("bits", "w_bits", "policy") if getattr(self, name) is not None]
        if self.a_bits is not None and self.w_bits is None:
            given.append("a_bits")
        if len(given) > 1:
            first, second = (f"--{name.replace('_', '-')}" for name in given[:2])
            raise InputError(f"{first} and {second} contradict each other: give one of them.")
        if self.policy is not None:
            Policy.load(self.policy)  # before the network takes seconds to load

    def of(self, layers: LayerTable) -> Bits:
        """Return the bits of every layer, int64 [L, 2]."""
        from haq_env.policy import MAX_BITS, Policy, uniform

        if self.policy is not None:
            return Policy.load(self.policy, layers.names).bits
        both = MAX_BITS if self.bits is None else self.bits
        w_bits = both if self.w_bits is None else self.w_bits
        return uniform(len(layers), w_bits, both if self.a_bits is None else self.a_bits)

    def build(self, network: str) -> dict[str, Any]:
        """Return how the policy's network is built, or else what images it takes, if it says so."""
        from haq_env.policy import Policy

        record = {} if self.policy is None else Policy.load(self.policy).record
        build = record.get("build") if record.get("network") == network else None
        if isinstance(build, dict) and build:
            names = ("image_size", "in_channels", "classes", "width")
            return {n: build[n] for n in names if n in build}
        match record.get("input_shape"):
            case [int(channels), int(height), int(width)] if height == width:
                known = {"in_channels": channels, "image_size": height}
                classes = record.get("classes")
                return {**known, "classes": classes} if isinstance(classes, int) else known
            case [_, int(height), int(width)]:
                raise InputError(
                    f"the policy is for images of {height} x {width} pixels, and only square ones "
                    "can be asked for here: use haq_env.make_task."
                )
        return {}

    @property
    def label(self) -> str:
        """What plots call these bits."""
        if self.policy is not None:
            return self.policy.name
        if self.bits is not None:
            return f"{self.bits} bits"
        return f"w{self.w_bits or 8}a{self.a_bits or 8}"


@dataclass(frozen=True)
class Selection:
    """Which answers of an evaluation cache: those for which all that is given holds."""

    older_than: Annotated[float | None, arg(metavar="DAYS")] = None
    """Those computed at least so many days ago."""
    network: Annotated[str | None, arg(metavar="NAME")] = None
    """Those of this network."""
    all: bool = False
    """All of them."""

    def check(self) -> None:
        """Refuse to guess what is meant."""
        some = self.older_than is not None or self.network is not None
        if self.all and some:
            raise InputError("--all contradicts --older-than and --network: give one of them.")
        if not self.all and not some:
            raise InputError("say what to prune: --older-than DAYS, --network NAME or --all.")
