"""What a search ends with: the final finetuning, the policy's file, a table and plots."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from haq_env.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from haq_env.commands.search import Search
    from haq_env.policy import Bits
    from haq_env.search.history import History
    from haq_env.task import Task


def conclude(settings: Search, task: Task, history: History, console: Console) -> None:
    """Finetune the best policies and the uniform one, and write everything down."""
    import torch

    from haq_env.evaluation.recipe import FINAL
    from haq_env.final import choose, finish, rows
    from haq_env.report.tables import COMPARED, comparison_table
    from haq_env.run_folder import NETWORK, save_policy

    task.close()  # what follows is measured one by one
    folder, recipe = settings.folder, replace(FINAL, steps=settings.final_steps)
    seeds = tuple(range(settings.seed + 1000, settings.seed + 1000 + settings.final_seeds))
    with console.status(f"final finetuning of the {settings.shortlist} best policies"):
        # what an agent decides without a search is what it is
        candidates = history if settings.episodes else history[1:]
        best = choose(task, candidates, recipe, settings.seed + 2000, settings.shortlist)
    found, uniform = best.bits, task.uniform()
    finals = {}
    scratch = folder / f"{NETWORK}.part"
    try:
        for name, bits in {"uniform": uniform, "found": found}.items():
            with console.status(f"final finetuning of the {name} policy, {len(seeds)} times"):
                path = scratch if name == "found" else None
                finals[name] = (bits, finish(task, bits, recipe, seeds, path))
    except BaseException:  # Ctrl-C, mostly
        scratch.unlink(missing_ok=True)
        raise
    about = {
        "env": settings.env_id,
        "algorithm": settings.algorithm,
        "search_seed": settings.seed,
        "final_recipe": asdict(recipe),
        "torch_threads": torch.get_num_threads(),
    }
    (folder / NETWORK).unlink(missing_ok=True)  # never that of another policy than the file's
    path = save_policy(folder, task, history, best, finals, about)
    if scratch.exists():
        scratch.replace(folder / NETWORK)
    console.print(comparison_table(rows(task, finals), (*COMPARED, task.budget.metric)))
    if history.charge is not None and history.charge.evaluations:
        seconds, evaluations = history.charge
        console.print(
            f"Before its {len(history)} evaluations it computed for {seconds:.1f} s, "
            f"the time of {evaluations:.1f} more.",
            soft_wrap=True,
        )
    if (found == uniform).all():
        console.print("After the final finetuning no policy was better than the uniform one.")
    network = f"{NETWORK}, " if (folder / NETWORK).exists() else ""
    plots = "plots" if _plot(folder, task, history, found) else "some of the plots"
    console.print(
        f"Written: {path} (the policy); beside it {network}episodes.csv, {plots}.",
        markup=False,
        soft_wrap=True,  # a path that is broken in two cannot be copied
    )


def _plot(folder: Path, task: Task, history: History, found: Bits) -> bool:
    """Draw what can be drawn, and warn of the rest: the policy has been found and written."""
    from haq_env.report.plots import plot_bits, plot_search
    from haq_env.report.roofline import plot_roofline

    both = {"uniform": task.uniform(), "found": found}
    try:
        plot_bits(both, task.layers, folder / "bits.png")
        plot_search(history, history[0].accuracy, task.float_accuracy, folder / "search.png")
        if task.costs.roofs is not None and {"traffic", "latency"} <= task.costs.values.keys():
            highest = {"8 bits": task.space.highest, "found": found}
            plot_roofline(task.layers, task.costs, highest, folder / "roofline.png")
    except InputError as error:
        print(f"warning: {error}", file=sys.stderr)
        return False
    return True
