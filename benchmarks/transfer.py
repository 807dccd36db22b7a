"""Does an agent that has learned on one task beat uniform bits on another, with no search there?

    python benchmarks/transfer.py [--seeds 0 1 2] [--episodes 300] [--out runs/transfer]

Agents learn on MobileNet-V1 and the edge accelerator (the embedded task). Each then decides once on
tasks it has never seen: MobileNet-V2 (HAQ's claim), another device,
another budget. Beside it: the uniform policy of equal cost, and what an agent of the same kind does
that has learned nothing, since a residual one starts from a good table. Accuracies are those of the
reward and, for seed 0, of the final finetuning on test images. Writes
benchmarks/results/transfer.md; exits with 1 if a transferred residual agent is not better than
uniform on MobileNet-V2.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: sums depend on the number

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
TARGETS: dict[str, dict[str, Any]] = {
    "MobileNet-V2, edge": {"network": "mobilenet_v2"},
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
    episodes: int = 300
    """Evaluations they learn from, on the first task."""
    final_seeds: int = 3
    """Final finetunings of each policy, for the agent of the first seed."""
    out: Path = Path("runs/transfer")
    """Folder of the trained agents and of the evaluation cache; what is there is used."""


def learn(id: str, algorithm: str, seed: int, settings: Settings) -> Path:
    """Train an agent, or find it trained; return its folder."""
    from haq_env.agents.run import search_with_agent
    from haq_env.env import make_env

    folder = settings.out / f"{id}-{algorithm}-{settings.episodes}-{seed}"
    if not (folder / "settings.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        env = make_env(id, cache=settings.out / "cache.sqlite")
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
    import torch

    from haq_env.agents.algorithms import make_agent
    from haq_env.agents.transfer import Source, apply_agent, decide
    from haq_env.env import make_env
    from haq_env.evaluation.recipe import FINAL
    from haq_env.final import finish
    from haq_env.versions import versions_line

    settings = tyro.cli(Settings)
    torch.set_num_threads(1)
    console = Console(record=True, width=110)
    finals = tuple(range(1000, 1000 + settings.final_seeds))
    failed = False
    for id, _, algorithm in (name.partition(":") for name in settings.sources):
        sources = [Source.open(learn(id, algorithm, seed, settings)) for seed in settings.seeds]
        table = Table(
            "target", "uniform", "untrained", *(f"seed {seed}" for seed in settings.seeds),
            "final, test: uniform", "seed 0", title=f"{algorithm} from {id}",
        )  # fmt: skip
        for name, given in TARGETS.items():
            env = make_env(
                id, **given, cache=settings.out / "cache.sqlite", scales=sources[0].scales
            )
            uniform, fresh = decide(make_agent(algorithm, env, seed=0, warmup=0), env)
            trials = [apply_agent(source, env)[1] for source in sources]
            if "V2" in name and "Residual" in id:
                failed |= any(trial.accuracy <= uniform.accuracy for trial in trials)
            after = [
                np.array(finish(env.task, bits, FINAL, finals).test)
                for bits in (uniform.bits, trials[0].bits)
            ]
            table.add_row(
                name, f"{uniform.accuracy:.2f}", f"{fresh.accuracy:.2f}",
                *(f"{trial.accuracy:.2f}" for trial in trials),
                *(f"{each.mean():.2f}" for each in after),
            )  # fmt: skip
        console.print(table)
    console.print(
        f"{'NOT MET' if failed else 'met'}: every transferred residual agent beats uniform bits on "
        "MobileNet-V2, without an evaluation there"
    )
    console.print(f"top-1, %; {settings.episodes} episodes on the first task; {versions_line()}")
    RESULTS.mkdir(exist_ok=True)
    head = "# Transfer\n\n`python benchmarks/transfer.py`\n\n```\n"
    text = head + console.export_text() + "```\n"
    (RESULTS / "transfer.md").write_text(text, encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
