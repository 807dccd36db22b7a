"""Train a float network: `haq-env train` under the name that the cards of bundled weights record.

    python benchmarks/train_network.py --network resnet20 --dataset cifar10:FOLDER ...

is `haq-env train resnet20 --dataset cifar10:FOLDER ...`, which `haq-env train --help` explains.
"""

from __future__ import annotations

import sys

from haq_env.cli import main as haq_env


def main() -> None:
    """Train."""
    argv = [each.removeprefix("--network=") for each in sys.argv[1:] if each != "--network"]
    if not any(each.split("=")[0] in ("--dataset", "--help", "-h") for each in argv):
        argv += ["--dataset", "cifar10"]
    haq_env(["train", *argv])


if __name__ == "__main__":
    main()
