"""Does an agent that has learned on one task beat uniform bits on another, with no search there?

    python benchmarks/transfer.py [--seeds 0 1 2] [--episodes 300] [--out runs/transfer]
    python benchmarks/transfer.py --dataset cifar10:FOLDER --networks NETWORK NETWORK

Agents learn on MobileNet-V1 and the edge accelerator, on the digits or another data set. Each then
decides once on tasks it has never seen: MobileNet-V2 (HAQ's claim), another device, another budget.
Beside it: the uniform policy of equal cost, and what an agent of the same kind does that has
learned nothing, since a residual one starts from a good table. Accuracies are those of the reward
and, for the first seed, of the final finetuning on test images. Writes transfer.md (of other data
than the digits transfer_DATASET.md) into --results; exits with 1 if a transferred residual agent is
not better than uniform on MobileNet-V2.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from haq_env.summation import pinned

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: sums depend on the number
os.environ |= pinned()  # likewise: others add alike, and get the same digits

import numpy as np
import tyro
from result_files import (
    command_line,
    keep_settings,
    sums,
    versions_line,
    weights_digest,
    write_text,
)
from rich.console import Console
from rich.table import Table

from haq_env.data import dataset_name, load_dataset
from haq_env.errors import InputError
from haq_env.evaluation.recipe import FINAL
from haq_env.malloc import keep_freed_memory
from haq_env.networks.bundled import find_trained

RESULTS = Path(__file__).parent / "results"
OTHERS: dict[str, dict[str, Any]] = {  # on the network that was learned on
    "cloud": {"hardware": "bismo-cloud"},
    "BitFusion, w2a8": {"hardware": "bitfusion", "budget": "w2a8"},
    "edge, w2a2": {"budget": "w2a2"},
    "edge, w4a3": {"budget": "w4a3"},
}


@dataclass(frozen=True)
class Settings:
    """Put trained agents on tasks they have never seen."""

    sources: tuple[str, ...] = ("HAQ-BISMO-Edge-Residual-v0:ppo",)
    """Environment and algorithm that are learned from; another one is HAQ-BISMO-Edge-v0:sac."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the agents that learn."""
    dataset: str = "digits"
    """digits, cifar10:FOLDER, or another data set that both networks are trained for."""
    networks: tuple[str, str] = ("mobilenet_v1", "mobilenet_v2")
    """The one that is learned on, and the one that is not."""
    weights: Path | None = None
    """Folder with NETWORK_DATASET.safetensors; the bundled weights when not given."""
    evaluator: str = "finetune"
    """Tier of the reward: finetune or ptq_bn."""
    episodes: int = 300
    """Evaluations they learn from, on the first task."""
    final_seeds: int = 3
    """Final finetunings of each policy, for the agent of the first seed."""
    final_steps: int = FINAL.steps
    """Gradient steps of each."""
    final_batch: int = FINAL.batch_size
    """Images a step."""
    final_rate: float = FINAL.learning_rate
    """Learning rate of the first step."""
    out: Path = Path("runs/transfer")
    """Folder of the trained agents and of the evaluation cache; what is there is used."""
    results: Path = RESULTS
    """Folder of the table."""

    @property
    def name(self) -> str:
        """Of the data set, in files."""
        return dataset_name(self.dataset).replace(":", "-")

    def task(self, network: str) -> dict[str, Any]:
        """Return what an environment is made with for a network, its hardware apart."""
        file = f"{network}_{self.name}.safetensors"
        return {
            "network": network,
            "dataset": self.dataset,
            "checkpoint": None if self.weights is None else self.weights / file,
            "evaluator": self.evaluator,
            "cache": self.out / "cache.sqlite",
        }


def learn(id: str, algorithm: str, seed: int, settings: Settings) -> Path:
    """Train an agent, or find it trained; return its folder.

    Raises:
        InputError: the folder's agent has learned on other weights or images.
    """
    from haq_env.agents.run import search_with_agent
    from haq_env.make import make_env

    source = settings.networks[0]
    known = find_trained(source, settings.dataset, settings.task(source)["checkpoint"])
    assert known.checkpoint is not None
    images = load_dataset(settings.dataset, **dict(known.dataset_options)).digest()
    made_of = {"weights": weights_digest(known.checkpoint), "images": images}
    about = f"{source}-{settings.name}-{settings.evaluator}"
    first = "" if about == "mobilenet_v1-digits-finetune" else f"{about}-"
    folder = settings.out / f"{first}{id}-{algorithm}-{settings.episodes}-{seed}"
    if (folder / "settings.json").exists() and not (folder / "made_of.json").exists():
        raise InputError(
            f"{folder} does not say what its agent has learned on: give another --out."
        )
    keep_settings(made_of, folder / "made_of.json")
    if not (folder / "settings.json").exists():
        env = make_env(id, **settings.task(source))
        history = search_with_agent(
            env, algorithm, settings.episodes, seed, folder=folder, resume=True
        )
        if history.interrupted:
            raise KeyboardInterrupt
        record = {"env": id, "algo": algorithm, "seed": seed, "episodes": settings.episodes}
        (folder / "settings.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    """Learn, transfer, print, write."""
    keep_freed_memory()
    try:
        failed = transferred(tyro.cli(Settings, description=__doc__))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: call it again to go on with the agents", file=sys.stderr)
        sys.exit(130)
    sys.exit(failed)


def transferred(settings: Settings) -> bool:
    """Do it; return whether MobileNet-V2 is not better than with uniform bits."""
    import torch

    from haq_env.agents.algorithms import make_agent
    from haq_env.agents.transfer import Source, apply_agent, decide
    from haq_env.final import finish
    from haq_env.make import make_env

    torch.set_num_threads(1)
    for name in ("sources", "seeds"):
        if not getattr(settings, name):
            raise InputError(f"{name}: at least one is needed.")
    console = Console(record=True, width=110)
    finals = tuple(range(1000, 1000 + settings.final_seeds))
    recipe = replace(
        FINAL,
        steps=settings.final_steps,
        batch_size=settings.final_batch,
        learning_rate=settings.final_rate,
    )
    source, target = settings.networks
    targets = {f"{target}, edge": {"network": target}, **OTHERS}
    find_trained(target, settings.dataset, settings.task(target)["checkpoint"])  # now, not in hours
    judged: list[bool] = []
    for id, _, algorithm in (name.partition(":") for name in settings.sources):
        sources = [Source.open(learn(id, algorithm, seed, settings)) for seed in settings.seeds]
        table = Table(
            "target", "uniform", "untrained", *(f"seed {seed}" for seed in settings.seeds),
            "final, test: uniform", f"seed {settings.seeds[0]}",
            title=f"{algorithm} from {id}, {source}",
        )  # fmt: skip
        for name, given in targets.items():
            about = {**settings.task(given.get("network", source)), **given}
            env = make_env(id, **about, scales=sources[0].scales)
            uniform, fresh = decide(make_agent(algorithm, env, seed=0, warmup=0), env)
            trials = [apply_agent(source, env)[1] for source in sources]
            if "network" in given and "Residual" in id:
                judged += [trial.accuracy > uniform.accuracy for trial in trials]
            after = [
                np.array(finish(env.task, bits, recipe, finals).test)
                for bits in (uniform.bits, trials[0].bits)
            ]
            table.add_row(
                name, f"{uniform.accuracy:.2f}", f"{fresh.accuracy:.2f}",
                *(f"{trial.accuracy:.2f}" for trial in trials),
                *(f"{each.mean():.2f}" for each in after),
            )  # fmt: skip
        console.print(table)
    failed = not all(judged)
    state = "NOT MET" if failed else "met" if judged else "not decided"
    console.print(
        f"{state}: every transferred residual agent beats uniform bits on "
        f"{target}, without an evaluation there"
    )
    console.print(
        f"top-1, %; {settings.episodes} episodes on the first task; {sums()}; {versions_line()}"
    )
    note = load_dataset(settings.dataset).note
    head = "\n\n".join(
        ["# Transfer", f"`{command_line(__file__, settings)}`", *[note] * bool(note)]
    )
    of = "" if settings.name == "digits" else f"_{settings.name}"
    path = settings.results / f"transfer{of}.md"
    write_text(path, f"{head}\n\n```\n{console.export_text()}```\n")
    return failed


if __name__ == "__main__":
    main()
