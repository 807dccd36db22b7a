"""The command ``haq-env``: what networks cost on which hardware, and what there is.

Each command is a frozen dataclass with a ``run`` method and one line in `COMMANDS`. What a command
needs is imported when it runs, so that ``--help`` and the lists come at once.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Union

import tyro
from tyro.conf import (
    FlagCreatePairsOff,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    arg,
    subcommand,
)

from haq_env.errors import InputError
from haq_env.options import (
    BitChoice,
    Build,
    CacheFile,
    Machine,
    Network,
    OptionalInt,
    OptionalPath,
    Selection,
)
from haq_env.report.terminal import columns, lenient, show, silence, write, writing

# The shell's conventions: 128 + the signal's number.
INTERRUPTED, BROKEN_PIPE = 130, 141


class Command(Protocol):
    """A subcommand."""

    def run(self) -> None:
        """Do it; raises InputError for what the user gave wrong, SystemExit for exit codes."""
        ...


# -- commands ----------------------------------------------------------------------------------


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
class Train:
    """Train a float network and write a checkpoint that environments can use."""

    network: Network
    out: Annotated[Path, arg(metavar="FILE", help="The safetensors file to write.")]
    dataset: str = "digits"
    """Data set by name, or package.module:factory."""
    width: float = 1.0
    """Factor on the channel counts of built-in networks."""
    image_size: OptionalInt = None
    """Height and width of the images, where the data set comes in several sizes."""
    epochs: int = 30
    """Passes over the training images."""
    learning_rate: float = 0.1
    """Of the first step; it follows a cosine down to zero."""
    batch_size: int = 32
    """Images a step."""
    weight_decay: float = 5e-4
    """On the weights of convolutions and linear layers."""
    seed: int = 0
    """Of the first weights and of the order of images."""
    device: str = "cpu"
    """Torch device."""

    def run(self) -> None:
        """Train, write the file, print the accuracies."""
        from dataclasses import asdict

        from haq_env.evaluation.train import train_float

        with writing(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
        accuracy = train_float(**asdict(self))["accuracy"]
        found = ", ".join(f"{part} {value:.2f} %" for part, value in accuracy.items())
        write(f"Written: {self.out} ({found})\n")


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


@dataclass(frozen=True)
class CacheShow:
    """Show what an evaluation cache holds: answers by network, data set, tier and seed."""

    path: CacheFile = Path("cache.sqlite")

    def run(self) -> None:
        """Print the table."""
        from haq_env.evaluation.cache import EvaluationCache
        from haq_env.report.cached import cache_table

        with closing(EvaluationCache(self.path, create=False)) as cache:
            show(cache_table(cache))


@dataclass(frozen=True)
class CachePrune:
    """Drop answers from an evaluation cache."""

    path: CacheFile
    selection: Selection
    dry_run: bool = False
    """Only say how many."""

    def run(self) -> None:
        """Drop them, and print how many they were."""
        from haq_env.evaluation.cache import EvaluationCache

        chosen = self.selection
        chosen.check()
        with closing(EvaluationCache(self.path, create=False)) as cache:
            dropped = cache.prune(
                older_than=chosen.older_than or 0.0, network=chosen.network, dry_run=self.dry_run
            )
        done = "Would be dropped" if self.dry_run else "Dropped"
        write(f"{done}: {dropped:,} answer{'s' * (dropped != 1)}\n")


@dataclass(frozen=True)
class Cache:
    """Show or prune an evaluation cache."""

    action: Annotated[CacheShow, subcommand("show")] | Annotated[CachePrune, subcommand("prune")]

    def run(self) -> None:
        """Do what was chosen."""
        self.action.run()


@dataclass(frozen=True)
class Convert:
    """Turn a policy into other tools' files, or a CSV table into a policy."""

    file: Annotated[Positional[Path], arg(metavar="FILE", help="A policy.json, or a .csv table.")]
    out: Annotated[Path, arg(metavar="FILE", help="The file to write.")]
    to: Annotated[str | None, arg(metavar="FORM")] = None
    """csv, hawq (bit_config) or nncf (bitwidth_per_scope); a policy when not given."""

    def run(self) -> None:
        """Write the file."""
        from haq_env.conversion import convert

        write(f"Written: {convert(self.file, self.out, self.to)}\n")


# One line for each command.
COMMANDS: dict[str, type[Command]] = {
    "cost": Cost,
    "roofline": RooflinePlot,
    "lint": Lint,
    "train": Train,
    "convert": Convert,
    "cache": Cache,
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
        config=(OmitArgPrefixes, OmitSubcommandPrefixes, FlagCreatePairsOff),
    )
    return command
