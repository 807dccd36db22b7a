"""The command ``haq-env``: what networks cost on which hardware, and what there is.

Each command is a frozen dataclass with a ``run`` method and one line in `COMMANDS`. What a command
needs is imported when it runs, so that ``--help`` and the lists come at once.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

from haq_env.errors import InputError
from haq_env.report.terminal import columns, lenient, show, silence, write, writing

if TYPE_CHECKING:
    from haq_env.cost import CostTable
    from haq_env.layers import LayerTable
    from haq_env.policy import Bits

# The shell's conventions: 128 + the signal's number.
INTERRUPTED, BROKEN_PIPE = 130, 141


class Command(Protocol):
    """A subcommand."""

    def run(self) -> None:
        """Do it; raises InputError for what the user gave wrong, SystemExit for exit codes."""
        ...


# -- options that several commands share -------------------------------------------------------

OptionalInt = Annotated[int | None, arg(metavar="INT")]
OptionalPath = Annotated[Path | None, arg(metavar="FILE")]


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


# -- commands ----------------------------------------------------------------------------------

Network = Annotated[
    Positional[str],
    arg(
        metavar="NETWORK",
        help="Built-in network (see `haq-env networks`), name of a torchvision classification "
        "model, or package.module:factory.",
    ),
]


@dataclass(frozen=True)
class Cost:
    """Show what a network costs on a machine, layer by layer and in all."""

    network: Network
    machine: Machine
    bits: BitChoice
    build: Build
    json: bool = False
    """Print JSON instead of the table."""
    table: OptionalPath = None
    """Also write the costs of all layers at all bits to this CSV file."""

    def run(self) -> None:
        """Print the table or JSON; write the CSV file."""
        from haq_env.hardware.table import write_table
        from haq_env.report.record import cost_record
        from haq_env.report.tables import cost_table

        self.bits.check()
        layers = self.build.layers(self.network)
        bits = self.bits.of(layers)
        costs = self.machine.costs(layers)
        if self.table is not None:
            with writing(self.table):
                write_table(self.table, costs)
        if self.json:
            write(json.dumps(cost_record(layers, costs, bits), indent=1) + "\n")
            return
        show(cost_table(layers, costs, bits, width=columns()))
        if self.table is not None:
            write(f"Written: {self.table}\n")


@dataclass(frozen=True)
class RooflinePlot:
    """Draw the layers of a network under a machine's roofs, at 8 bits and after."""

    network: Network
    machine: Machine
    bits: BitChoice
    build: Build
    out: Path = Path("roofline")
    """Files to write, without suffix: a PNG and an SVG."""

    def run(self) -> None:
        """Write both files."""
        from haq_env.policy import MAX_BITS, uniform
        from haq_env.report.roofline import plot_roofline

        self.bits.check()
        layers = self.build.layers(self.network)
        after = self.bits.of(layers)
        eight = uniform(len(layers), MAX_BITS, MAX_BITS)
        policies = {"8 bits": eight}
        if (after != eight).any():
            policies[self.bits.label] = after
        with writing(self.out):
            paths = plot_roofline(layers, self.machine.costs(layers), policies, self.out)
        write("".join(f"Written: {path}\n" for path in paths))


@dataclass(frozen=True)
class Lint:
    """Look for mistakes in a CSV table of measured costs; exit code 1 if there are some."""

    file: Annotated[Positional[Path], arg(metavar="FILE", help="The table.")]
    network: Annotated[str, arg(metavar="NETWORK", help="The network that it is for.")]
    build: Build

    def run(self) -> None:
        """Print one line for each finding."""
        from haq_env.hardware.table import lint_file

        try:
            self.file.open("rb").close()  # no table at all is a wrong argument, not a finding
        except OSError as error:
            raise InputError(f"cannot read {self.file}: {error.strerror}.") from error
        findings = lint_file(self.file, self.build.layers(self.network))
        write("".join(f"{finding}\n" for finding in findings or [f"{self.file}: no findings."]))
        if findings:
            raise SystemExit(1)


@dataclass(frozen=True)
class ListHardware:
    """List the hardware models."""

    def run(self) -> None:
        """Print names and descriptions."""
        from haq_env.hardware import HARDWARE
        from haq_env.report.listings import registry_table

        show(registry_table(HARDWARE))


@dataclass(frozen=True)
class ListNetworks:
    """List the built-in networks."""

    def run(self) -> None:
        """Print names, descriptions and the data sets that there are trained weights for."""
        from haq_env.networks import NETWORKS
        from haq_env.networks.bundled import bundled_pairs
        from haq_env.report.listings import registry_table

        trained: dict[str, str] = {}
        for network, dataset in bundled_pairs():
            trained[network] = ", ".join(filter(None, (trained.get(network), dataset)))
        show(registry_table(NETWORKS, {"trained for": trained}))
        write("Besides: torchvision's classification models by name, and package.module:factory.\n")


@dataclass(frozen=True)
class ListEnvironments:
    """List the registered environments."""

    def run(self) -> None:
        """Print ids and what makes them differ."""
        from haq_env.report.listings import environment_table

        show(environment_table())


@dataclass(frozen=True)
class ListDatasets:
    """List the built-in data sets."""

    def run(self) -> None:
        """Print names and descriptions."""
        from haq_env.data import DATASETS
        from haq_env.report.listings import registry_table

        show(registry_table(DATASETS))


# One line for each command.
COMMANDS: dict[str, type[Command]] = {
    "cost": Cost,
    "roofline": RooflinePlot,
    "lint": Lint,
    "hardware": ListHardware,
    "networks": ListNetworks,
    "envs": ListEnvironments,
    "datasets": ListDatasets,
}


# -- running them ------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """Run ``haq-env``.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Raises:
        SystemExit: 0 after --help, 1 when lint has findings, 2 when the user gave something
            that cannot be used, 130 after Ctrl-C, 141 when nobody reads the output any more.
    """
    argv = sys.argv[1:] if argv is None else argv
    lenient()
    try:
        if argv == ["--version"]:
            from haq_env import __version__

            write(f"haq-env {__version__}\n")
        else:
            _parse(argv).run()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        silence()
        raise SystemExit(BROKEN_PIPE) from None


def _parse(argv: list[str]) -> Command:
    kinds: Any = tuple(Annotated[kind, subcommand(name)] for name, kind in COMMANDS.items())
    command: Command = tyro.cli(
        Union[kinds],  # noqa: UP007  (built from a list)
        prog="haq-env",
        description="Hardware-aware mixed-precision quantization: costs, plots and lists. "
        "haq-env COMMAND --help explains a command; haq-env --version prints the version.",
        args=argv,
        config=(OmitArgPrefixes, FlagCreatePairsOff),
    )
    return command
