"""One network of `proxy_rank.py`: policies of equal cost, and what is measured of each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from haq_settings import FINALS, Finetuning, OfDataset
from ranking import Ranking, ranking
from result_files import keep_settings, read, weights_digest, write
from rich.console import Console
from sensitivities import equal_cost

from haq_env.data import Dataset, Split, load_dataset
from haq_env.errors import InputError
from haq_env.evaluation import RECIPES, Recipe
from haq_env.evaluation.fingerprint import ANSWERS, TRAINING_STEP
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.make import make_task
from haq_env.networks.bundled import find_trained
from haq_env.policy import ACTIVATION, WEIGHT, Bits, to_digits
from haq_env.report.scores import Array
from haq_env.search.sensitivity import METHODS, measure_sensitivity
from haq_env.space import BitSpace
from haq_env.task import Task
from haq_env.versions import processor

RESULTS = Path(__file__).parent / "results"
WIDTHS = (2, 3, 4, 5)
FEWEST = 4  # policies, for a correlation
CEILING = "one seed of it, against another one"
ON_THEM = "the full finetune, on those images"


@dataclass(frozen=True)
class Settings(OfDataset):
    """Rank policies of equal cost by proxies and by the full finetuning."""

    dataset: str = "digits"
    """digits, cifar10:FOLDER, or another data set that the networks are trained for."""
    networks: tuple[str, ...] = ()
    """Those that have weights when not given."""
    weights: Path | None = None
    """Folder with NETWORK_DATASET.safetensors; the bundled weights when not given."""
    policies: int = 32
    """How many."""
    draw: Literal["permutations", "budget"] = "permutations"
    """Permutations of one multiset of widths, or random policies that spend one budget."""
    budget: str = "w3a3"
    """The budget of --draw budget."""
    hardware: str = "bismo-edge"
    """What costs are told of, and what the budget is of."""
    steps: tuple[int, ...] = (7, 28, 70)
    """Gradient steps of the short finetunings."""
    step_rate: float = RECIPES["finetune"].learning_rate
    """Their learning rate; it follows a cosine down to zero."""
    sensitivities: tuple[str, ...] = tuple(METHODS)
    """Tables whose sums are proxies."""
    epochs: float | None = None
    """Of the full finetuning; as in reproduce_haq.py when not given."""
    seeds: int = 2
    """Seeds of the full finetuning; the truth is their mean."""
    seed: int = 0
    """Of the policies, the tables and the short finetunings."""
    device: str = "cpu"
    """Torch device."""
    threads: int = 1
    """Threads of torch on the CPU."""
    minutes: float = float("inf")
    """Begin no policy after so many minutes."""
    out: Path = Path("runs/proxy_rank")
    """Folder of what is measured."""
    results: Path = RESULTS
    """Folder of the tables."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Six policies, one network, two tables: does everything work here? Into OUT/quick."""
    report_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Report what has been measured."""

    @property
    def final(self) -> Finetuning:
        """The full finetuning."""
        usual = FINALS.get(self.name, Finetuning())
        return usual if self.epochs is None else replace(usual, epochs=self.epochs)


def permutations(space: BitSpace, count: int, seed: int) -> Bits:
    """Draw permutations of one multiset of widths, int64 [count, L, 2]; pinned sides stay.

    As in set B of the experiment that this repeats: 2, 3, 4, 5 in turn over the layers, shuffled
    for the weights and for the activations.
    """
    rng = np.random.default_rng(seed)
    policies = np.tile(space.highest, (count, 1, 1))
    for side in (WEIGHT, ACTIVATION):
        layers = [step.layer for step in space.steps if step.side == side]
        cycled = np.resize(WIDTHS, len(layers))
        for policy in policies:
            policy[layers, side] = rng.permutation(cycled)
    if (space.clip(policies) != policies).any():
        raise InputError(f"the widths {WIDTHS} are not all allowed.")
    return policies


def halves(data: Dataset) -> Dataset:
    """Put one half of the held-out images in the place of the test images."""
    count = len(data.val) // 2
    rest = Split(data.val.images[count:], data.val.labels[count:])
    return replace(data, val=data.val.first(count), test=rest)


class Study:
    """One network: its policies, and what is measured of each.

    Args:
        settings: all of them.
        network: its name.
    """

    def __init__(self, settings: Settings, network: str) -> None:
        self.settings, self.network = settings, network
        checkpoint = settings.checkpoint(network)
        about = find_trained(network, settings.dataset, checkpoint)
        assert about.checkpoint is not None
        whole = load_dataset(settings.dataset, **dict(about.dataset_options))
        data = halves(whole)
        self.task: Task = make_task(
            network,
            data,
            settings.hardware,
            metric="latency",
            budget=settings.budget,
            evaluator="ptq_bn",
            checkpoint=checkpoint,
            device=settings.device,
        )
        final = settings.final
        steps = round(final.epochs * len(data.train) / final.batch_size)
        self.full = Recipe(steps, final.batch_size, final.learning_rate)
        short = replace(RECIPES["finetune"], learning_rate=settings.step_rate)
        self.short = {"ptq_bn": RECIPES["ptq_bn"]}
        self.short |= {f"{count} steps": replace(short, steps=count) for count in settings.steps}
        if settings.draw == "permutations":
            self.policies = permutations(self.task.space, settings.policies, settings.seed)
        else:
            self.policies = equal_cost(self.task, settings.policies, settings.seed)
        self.images = (len(data.val), len(data.test))
        self.note = data.note
        digest = weights_digest(about.checkpoint)
        self.folder = settings.out / settings.name / f"{network}-{digest}"
        protocol = {
            **{n: getattr(settings, n) for n in ("draw", "policies", "seed", "threads")},
            "budget": settings.budget if settings.draw == "budget" else None,
            "device": torch.device(settings.device).type,
            "full": asdict(self.full),
            "step_rate": settings.step_rate,
            "images": self.images,
            "pixels": data.digest(),
            "answers": ANSWERS,
            "training_step": TRAINING_STEP,
            "processor": processor(),
            "versions": {"torch": torch.__version__.partition("+")[0], "numpy": np.__version__},
        }
        if settings.draw == "budget":  # what costs the same depends on the machine
            protocol["hardware"] = str(settings.hardware)
        keep_settings(protocol, self.folder / "protocol.json")

    def measure(self, number: int) -> None:
        """Measure what is missing of a policy; every number is kept as soon as it is there."""
        path = self.folder / f"policy-{number:03d}.json"
        bits = self.policies[number]
        text = list(to_digits(bits))
        fresh: dict[str, Any] = {"bits": text, "proxies": {}, "full": {}}
        record = read(path) if path.exists() else fresh
        if record["bits"] != text:
            raise InputError(f"{path} is of another policy: give another --out.")
        for name, recipe in self.short.items():
            if name not in record["proxies"]:
                answer = self._evaluator.final(bits, recipe, self.settings.seed)
                record["proxies"][name] = answer["val"]
                write(path, record)
        for seed in self.full_seeds:
            if seed not in record["full"]:
                record["full"][seed] = self._evaluator.final(bits, self.full, int(seed))
                write(path, record)

    @property
    def missing(self) -> list[str]:
        """Names of the sensitivity tables that have not been measured."""
        return [name for name in self.settings.sensitivities if not self.table(name).exists()]

    def tables(self, console: Console) -> None:
        """Measure the sensitivities that are missing."""
        for method in self.missing:
            found = measure_sensitivity(self.task, method, self.settings.seed)
            predicted = found.predict(self.policies).tolist()
            write(self.table(method), {"predicted": predicted, "seconds": found.charge.seconds})
            console.print(f"{self.network}: {method}, {found.charge.seconds:.0f} s")

    @property
    def full_seeds(self) -> list[str]:
        """Seeds of the full finetuning, which nothing else uses."""
        return [str(1000 + number) for number in range(self.settings.seeds)]

    def complete(self) -> dict[int, dict[str, Any]]:
        """Return what is known of the policies of which everything is known."""
        found = {}
        for number in range(len(self.policies)):
            path = self.folder / f"policy-{number:03d}.json"
            record = read(path) if path.exists() else {"proxies": {}, "full": {}}
            measured = {*record["proxies"], *record["full"]}
            bits = self.policies[number]
            if measured and record["bits"] != list(to_digits(bits)):
                raise InputError(f"{path} is of another policy: give another --out.")
            if {*self.short, *self.full_seeds} <= measured:
                found[number] = record
        return found

    def measured(self, known: dict[int, dict[str, Any]], half: str = "test") -> Array:
        """Return accuracies after the full finetuning, float64 [policies, seeds].

        Args:
            known: what `complete` returns.
            half: "test" for the images of the truth, "val" for those of the proxies.
        """
        return np.array([[r["full"][s][half] for s in self.full_seeds] for r in known.values()])

    def rankings(self) -> Iterator[tuple[str, Ranking]]:
        """Yield every proxy with how well it ranks the policies that are complete."""
        known = self.complete()
        if len(known) < FEWEST:
            return
        numbers = list(known)
        full = self.measured(known)
        truth = full.mean(axis=1)
        for name in self.short:
            yield name, ranking(np.array([r["proxies"][name] for r in known.values()]), truth)
        for method in self.settings.sensitivities:
            path = self.table(method)
            if path.exists():
                yield method, ranking(-np.array(read(path)["predicted"])[numbers], truth)
        same = self.measured(known, "val")
        yield ON_THEM, ranking(same.mean(axis=1), truth)
        if len(self.full_seeds) > 1:
            yield CEILING, ranking(same[:, 0], full[:, 1])

    def table(self, method: str) -> Path:
        """Return the file of a sensitivity table."""
        return self.folder / f"sensitivity-{method}.json"

    @property
    def _evaluator(self) -> TrainedEvaluator:
        return self.task.trained()
