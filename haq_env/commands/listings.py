"""What there is to choose from."""

from __future__ import annotations

from dataclasses import dataclass

from haq_env.report.terminal import show, write


@dataclass(frozen=True)
class ListHardware:
    """List the hardware models."""

    def run(self) -> None:
        """Print names and descriptions."""
        from haq_env.hardware import HARDWARE
        from haq_env.hardware.load import MODELS
        from haq_env.report.listings import registry_table

        show(registry_table(HARDWARE))
        models = ", ".join(sorted({*HARDWARE, *MODELS}))
        write("Besides: a CSV file of measured costs, package.module:Class, and a TOML or JSON\n")
        write(f"file with a model ({models})\nand its parameters.\n")


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
