"""Options that several commands share, as frozen dataclasses that tyro turns into flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

    image_size: int = 224
    """Height and width of the images, in pixels."""
    channels: int = 3
    """Channels of the images."""
    classes: int = 1000
    """Outputs of the classifier."""
    width: float = 1.0
    """Factor on the channel counts of built-in networks."""

    def layers(self, network: str) -> LayerTable:
        """Trace a network."""
        from haq_env.networks import load_layers

        return load_layers(
            network,
            image_size=self.image_size,
            in_channels=self.channels,
            classes=self.classes,
            width=self.width,
        )


@dataclass(frozen=True)
class Machine:
    """What the network runs on."""

    hardware: str = "bismo-edge"
    """Name (see `haq-env hardware`), .toml, .json or .csv file, or package.module:Class."""
    batch: OptionalInt = None
    """Samples computed at once; the hardware's own when not given."""

    def costs(self, layers: LayerTable) -> CostTable:
        """Compute the cost table of a network."""
        from haq_env.hardware.load import load_hardware

        parameters = {} if self.batch is None else {"batch": self.batch}
        return load_hardware(self.hardware, **parameters).cost_table(layers)


@dataclass(frozen=True)
class BitChoice:
    """Bits of weights and activations: 8 everywhere, unless something else is said."""

    bits: OptionalInt = None
    """Bits of all weights and activations."""
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
