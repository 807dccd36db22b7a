"""Settings of `reproduce_haq.py`: what is run, in which order, and what all rows have in common."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from haq_board import Board
from haq_cells import CHOOSING, Protocol
from haq_paper import BLOCKS, TableCell, ordered_cells, tighter_cells
from haq_results import UNIFORM, Result

from haq_env.agents.methods import search_method
from haq_env.data import Dataset, dataset_argument, dataset_name, load_dataset
from haq_env.errors import InputError, unknown_name
from haq_env.evaluation import RECIPES, Recipe
from haq_env.evaluation.device import find_device
from haq_env.evaluation.fingerprint import ANSWERS
from haq_env.networks.bundled import find_trained
from haq_env.search.bayesian import check_installed

RESULTS = Path(__file__).parent / "results" / "reproduce"
NETWORKS = ("mobilenet_v1_050", "resnet20", "mobilenet_v2_050", "mobilenet_v1", "mobilenet_v2")
ON_DIGITS = ("mobilenet_v1", "mobilenet_v2")
METHODS = ("haq-ddpg", "residual-ppo", "evolution", "ilp-fit")
ARITHMETIC = {"float": "in floating point", "int8": "with integer kernels"}
QUICK_BLOCKS = ("edge-latency", "size")


@dataclass(frozen=True)
class Finetuning:
    """The final finetuning of every row: passes, images a step, first learning rate."""

    epochs: float = 3.0
    batch_size: int = 128
    learning_rate: float = 0.01


FINALS = {"digits": Finetuning(epochs=10.0, batch_size=32, learning_rate=0.05)}


class OfDataset:
    """Names of files, for settings with a data set and a folder of weights."""

    dataset: str
    weights: Path | None

    @property
    def name(self) -> str:
        """Name of the data set in files."""
        return dataset_name(self.dataset).replace(":", "-")

    def checkpoint(self, network: str) -> Path | None:
        """Return the file of a network's weights, None for the bundled ones."""
        return None if self.weights is None else self.weights / f"{network}_{self.name}.safetensors"


@dataclass(frozen=True)
class Settings(OfDataset):
    """Run HAQ's tables again: searched against uniform policies of equal cost."""

    dataset: str = "cifar10"
    """cifar10:FOLDER, digits, or another data set that the networks are trained for."""
    networks: tuple[str, ...] = ()
    """In order; for CIFAR-10 MobileNet-V1 0.5 first, networks without weights are left out."""
    blocks: tuple[str, ...] = tuple(BLOCKS)
    """Machines and what is limited on them."""
    methods: tuple[str, ...] = METHODS
    """Search methods and agents; uniform bits, 8 bits and float are there anyway."""
    weights: Path | None = None
    """Folder with NETWORK_DATASET.safetensors; the bundled weights when not given."""
    evaluations: int = 100
    """Policies that each search may measure, the uniform policy included."""
    tier: str = "ptq_bn"
    """What measures a policy inside the search: ptq_bn or finetune."""
    inference: Literal["int8", "float"] = "int8"
    """Arithmetic of every accuracy: int8 where there are integer kernels for it, or float."""
    search_steps: int | None = None
    """Gradient steps of that tier, if not its own."""
    search_rate: float | None = None
    """Learning rate of that tier, if not its own."""
    epochs: float | None = None
    """Of the final finetuning, the same for every row; 3, for the digits 10, when not given."""
    batch_size: int | None = None
    """Of the final finetuning; 128, for the digits 32, when not given."""
    learning_rate: float | None = None
    """Of the final finetuning, its first step; 0.01, for the digits 0.05, when not given."""
    seeds: int = 3
    """Seeds of the final finetuning; the search uses none of them."""
    search_seed: int = 0
    """Seed of the search methods."""
    candidates: int = 1
    """Best policies of a search that are finetuned to choose among them, on held-out images."""
    val_images: int | None = None
    """Held-out images that the search measures on; all when not given."""
    test_images: int | None = None
    """Test images; all when not given."""
    device: str = "cpu"
    """Torch device."""
    threads: int = 1
    """Threads of torch on the CPU; they decide last digits."""
    minutes: float = float("inf")
    """Begin no evaluation and no finetuning after so many minutes."""
    out: Path = Path("runs/reproduce")
    """Folder of what is finished: results, final accuracies and the evaluation cache."""
    results: Path = RESULTS
    """Folder of the tables."""
    tighter: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run budgets below the paper's, too, in every block that has some, after the paper's cells."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Two cells, two methods, few evaluations, one seed: minutes, and into OUT/quick."""
    report_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Report what has been run."""

    @property
    def cells(self) -> list[TableCell]:
        """The cells, the most telling ones first."""
        found = ordered_cells(self.networks, self.blocks)
        if self.tighter:
            found += tighter_cells(self.networks, self.blocks)
        if not self.quick:
            return found
        first: dict[str, TableCell] = {}
        for cell in found:
            first.setdefault(cell.block, cell)
        return list(first.values())[:2]

    @property
    def final(self) -> Finetuning:
        """The final finetuning."""
        names = ("epochs", "batch_size", "learning_rate")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(FINALS.get(self.name, Finetuning()), **given)

    def protocol(self, data: Dataset) -> Protocol:
        """Say what decides the rows."""
        search, final = RECIPES[self.tier], self.final
        if self.search_steps is not None:
            search = replace(search, steps=self.search_steps)
        if self.search_rate is not None:
            search = replace(search, learning_rate=self.search_rate)
        steps = round(final.epochs * len(data.train) / final.batch_size)
        return Protocol(
            dataset=self.name,
            val_images=len(data.val),
            test_images=len(data.test),
            tier=self.tier,
            inference=self.inference,
            search=search,
            final=Recipe(steps, final.batch_size, final.learning_rate),
            final_seeds=tuple(range(1000, 1000 + self.seeds)),
            evaluations=self.evaluations,
            search_seed=self.search_seed,
            candidates=self.candidates,
            device=torch.device(self.device).type,
            threads=self.threads,
            images=data.digest(),
            note=data.note,
            versions={"torch": torch.__version__.partition("+")[0], "numpy": np.__version__},
            answers=ANSWERS,
        )


def checked(settings: Settings) -> Settings:
    """Fill in what was not given, and refuse what cannot be before anything is spent."""
    if not settings.blocks:
        raise InputError("blocks: at least one is needed.")
    for block in settings.blocks:
        if block not in BLOCKS:
            raise unknown_name("block", block, BLOCKS)
    for method in settings.methods:
        search_method(method)
        if method == "bayesian":
            check_installed()
    if settings.tier not in RECIPES:
        raise unknown_name("tier", settings.tier, RECIPES)
    for name in ("seeds", "evaluations", "candidates", "threads"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} must be 1 or more, not {getattr(settings, name)}.")
    if settings.search_seed < 0:
        raise InputError(f"search_seed must be 0 or more, not {settings.search_seed}.")
    if settings.final.epochs < 0 or settings.final.batch_size < 1:
        raise InputError("epochs must not be negative, and batch_size 1 or more.")
    find_device(settings.device)
    methods = tuple(name for name in settings.methods if name != UNIFORM)  # is there anyway
    settings = replace(settings, methods=methods)
    if not settings.quick:
        return settings
    quick = settings.out / "quick"
    blocks = settings.blocks if settings.blocks != tuple(BLOCKS) else QUICK_BLOCKS
    return replace(
        settings,
        blocks=blocks,
        methods=("residual-ppo", "ilp-fit") if settings.methods == METHODS else settings.methods,
        evaluations=min(8, settings.evaluations),
        epochs=min(0.2, settings.final.epochs),
        seeds=1,
        candidates=1,
        val_images=1000 if settings.val_images is None else settings.val_images,
        test_images=2000 if settings.test_images is None else settings.test_images,
        out=quick,
        results=quick / "results",
    )


def trained(settings: Settings) -> Settings:
    """Keep the networks that have weights; one that was asked for by name must have them."""
    if settings.networks:
        for network in settings.networks:
            find_trained(network, settings.dataset, settings.checkpoint(network))
        return settings
    found = []
    for network in ON_DIGITS if settings.name == "digits" else NETWORKS:
        try:
            find_trained(network, settings.dataset, settings.checkpoint(network))
        except InputError as error:
            missing = error
        else:
            found.append(network)
    if not found:
        raise missing
    return replace(settings, networks=tuple(found))


def shown_cells(settings: Settings, run: Iterable[TableCell]) -> list[TableCell]:
    """List the cells of a report: all there are, so that what was not run is seen to be missing."""
    if settings.quick:
        return settings.cells
    usual = ON_DIGITS if settings.name == "digits" else NETWORKS
    run = list(run)
    networks = dict.fromkeys((*usual, *settings.networks, *(cell.network for cell in run)))
    # budgets that the paper does not have are shown where there is something to show
    tighter = [c for c in tighter_cells(tuple(networks), tuple(BLOCKS)) if c in run]
    return [*ordered_cells(tuple(networks), tuple(BLOCKS)), *tighter]


def images(settings: Settings) -> Dataset:
    """Load the data set as the networks were trained on it, cut to the images to be measured on."""
    options = {}
    for network in settings.networks:
        about = find_trained(network, settings.dataset, settings.checkpoint(network))
        options[network] = dict(about.dataset_options)
    first = options[settings.networks[0]]
    for network, other in options.items():
        if other != first:
            raise InputError(
                f"{network} was trained on images with {other}, and {settings.networks[0]} with "
                f"{first}: run them one by one, into other folders."
            )
    data = load_dataset(settings.dataset, **first)
    parts = {"val": settings.val_images, "test": settings.test_images}
    cut = {
        part: split.first(min(count, len(split)))
        for part, count in parts.items()
        if count is not None and (split := getattr(data, part))
    }
    return replace(data, **cut)


def heading(settings: Settings, protocol: Protocol, board: Board, rows: Collection[Result]) -> str:
    """Say what was run, so that it can be repeated."""
    final, search = protocol.final, protocol.search
    given = [f"--dataset {dataset_argument(settings.dataset)}"]
    given += [f"--evaluations {settings.evaluations} --tier {settings.tier}"]
    given += [f"--inference {settings.inference}"]
    given += [f"--{k.replace('_', '-')} {v}" for k, v in asdict(settings.final).items()]
    given += [f"--seeds {settings.seeds} --search-seed {settings.search_seed}"]
    optional = ("search_steps", "search_rate", "val_images", "test_images")
    for name in optional:
        if getattr(settings, name) is not None:
            given.append(f"--{name.replace('_', '-')} {getattr(settings, name)}")
    given.append(f"--candidates {settings.candidates} --device {settings.device}")
    given.append(f"--threads {settings.threads}")
    tighter = any(row.block and row.budget in BLOCKS[row.block].tighter for row in rows)
    given += ["--tighter"] * tighter + ["--quick"] * settings.quick
    if settings.weights is not None:
        given.append("--weights FOLDER")
    for name in ("networks", "blocks", "methods"):
        given.append(f"--{name} {shlex.join(getattr(settings, name))}")
    made_with = ", ".join(f"{name} {number}" for name, number in protocol.versions.items())
    note = f" ({protocol.note})" if protocol.note else ""
    used = sorted({(row.quantizer, row.arithmetic) for row in rows if row.quantizer})
    arithmetic = ", ".join(f"of {quantizer} bits {ARITHMETIC[how]}" for quantizer, how in used)
    counts = Counter(row.sums for row in rows)
    processors = "".join(
        f"\n  - {board.letter(kind)}: {kind[0]}, training step {kind[1]}, {counts[kind]} rows"
        for kind in board.kinds
    )
    image_error = 100 * 0.5 / protocol.test_images**0.5
    return f"""# HAQ's Tables 3 to 6, on {protocol.dataset}

`python benchmarks/reproduce_haq.py {" ".join(given)}`

- Budget: what the uniform policy of that name costs, first and last layer at 8 bits. The first and
  the last layer stay at 8 bits in every policy.
- Search: {protocol.evaluations} evaluations for every method, the uniform policy being the first;
  tier {protocol.tier} ({search.steps} steps of {search.batch_size} images, learning rate
  {search.learning_rate}), {protocol.val_images:,} held-out images, seed {protocol.search_seed}.
  What a method computes besides stands behind a plus sign, in evaluations.
- Final finetuning, the same for every row: {final.steps} steps of {final.batch_size} images, SGD,
  learning rate {final.learning_rate} with a cosine to zero; seeds
  {", ".join(map(str, protocol.final_seeds))}; {protocol.candidates} candidate(s) a search
  (seed {CHOOSING} chooses, on held-out images).
- Accuracies are top-1 in percent on {protocol.test_images:,} test images{note},
  which chose nothing, measured {arithmetic or "nowhere yet"};
  ± is the standard error over finetuning seeds. That of the images is up to {image_error:.2f}
  points.
- Finetuned on what the tables call{processors or " nothing yet"}

  Where sums have other last digits, on another processor or with another version of the training
  step, the same seed ends in other weights, see benchmarks/LEADERBOARD.md.
- Gain: searched minus uniform, both finetuned with the same sums, paired seed by seed.
  "best on held-out" is the method that is best on the held-out images after finetuning: it has had
  the evaluations of all of them.
- The paper's gains are those of its networks on ImageNet. Its Table 3 does not count the first and
  the last layer: nor does "8 bits / it, as the paper counts". Its Table 6 counts the first
  convolution at 32 bits; here it has 8.

{made_with}
"""
