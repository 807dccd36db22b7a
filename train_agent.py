"""Search a mixed-precision policy with an off-the-shelf agent, or a baseline.

    python train_agent.py --env HAQ-BISMO-Edge-v0 --algo sac --episodes 300 --out runs/demo

Writes policy.json, network.safetensors, episodes.csv and plots into the folder, and ends with a
table: the float network, the uniform policy that fits the same budget, and the policy that was
found. Ctrl-C ends the search and reports what was found until then.

Exit codes: 0 when policy.json was written, 2 when something given cannot be used, 130 when Ctrl-C
came before there was a policy to write.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import arg

from haq_env.cost import UNITS
from haq_env.errors import InputError
from haq_env.report.terminal import lenient


@dataclass(frozen=True)
class Settings:
    """Search a mixed-precision policy with an off-the-shelf agent, or a baseline."""

    env: str = "HAQ-BISMO-Edge-v0"
    """Registered environment; `haq-env envs` lists them."""
    algo: Literal[
        "ddpg",
        "td3",
        "sac",
        "tqc",
        "crossq",
        "dqn",
        "ppo",
        "a2c",
        "maskable-ppo",
        "haq-ddpg",
        "uniform",
        "random",
        "annealing",
        "evolution",
        "bayesian",
        "greedy",
        "greedy-sensitivity",
        "ilp-kl",
        "ilp-fit",
        "ilp-hawq-v2",
        "ilp-hawq",
    ] = "sac"
    """Agent of Stable-Baselines3 (dqn and maskable-ppo need a -Discrete environment), HAQ's own, or
    a baseline (from uniform on: docs/search.md)."""
    haq: Literal["paper", "released"] = "paper"
    """With haq-ddpg: what to follow where HAQ's paper and its released code differ."""
    episodes: int = 300
    """Policies that are tried; each is finetuned and measured. With --transfer-from it may be
    0: the agent then decides once, without any search."""
    transfer_from: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder of a finished run: start from what its agent has learned there."""
    seed: int = 0
    """Seed of the search and of the finetuning inside the reward."""
    out: Path = Path("runs/demo")
    """Folder for everything that is written."""
    network: Annotated[str | None, arg(metavar="NETWORK")] = None
    """Network with bundled weights, or package.module:factory that returns a trained module."""
    dataset: Annotated[str | None, arg(metavar="DATASET")] = None
    """Data set by name, or package.module:factory that returns a haq_env.data.Dataset."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE")] = None
    """Safetensors file with the weights of a named network."""
    hardware: Annotated[str | None, arg(metavar="HARDWARE")] = None
    """Hardware by name, or a TOML, JSON or CSV file; the environment's own when not given."""
    metric: Annotated[str | None, arg(metavar="METRIC")] = None
    """What is limited: latency, energy, size, ...; the environment's own when not given."""
    budget: Annotated[str | None, arg(metavar="BUDGET")] = None
    """Share of the 8-bit network's cost (0.6) or a uniform policy (w4a4)."""
    bits: Annotated[tuple[int, int] | None, arg(metavar="LOW HIGH")] = None
    """Smallest and largest width, within 1 to 8; the environment's own when not given."""
    evaluator: Annotated[Literal["finetune", "ptq_bn"] | None, arg(metavar="{finetune,ptq_bn}")] = (
        None
    )
    """Tier of the reward; the environment's own when not given."""
    final_steps: int = 280
    """Gradient steps of the final finetuning, for the found and the uniform policy alike."""
    final_seeds: int = 3
    """How many times the final finetuning is repeated, to tell luck from gain."""
    shortlist: int = 5
    """Best policies of the search that are finetuned in full before one of them is chosen."""
    device: str = "cpu"
    """Torch device for finetuning."""
    threads: int = 1
    """Torch threads. Sums depend on their number, so one is what repeats on another machine; a
    small network gains next to nothing from more."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in the folder."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Throw away the run that is in the folder."""

    def check(self) -> None:
        """Refuse numbers that would only fail after the search."""
        for name in ("episodes", "final_seeds", "shortlist", "threads"):
            if name == "episodes" and self.transfer_from is not None and self.episodes == 0:
                continue
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if self.final_steps < 0:
            raise InputError(f"final_steps must be 0 or more, not {self.final_steps}.")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed must be 0 to {2**31 - 1}, not {self.seed}.")
        if self.transfer_from is not None and self.is_baseline:
            raise InputError(f"{self.algo} is a baseline and has no agent: drop --transfer-from.")
        if self.transfer_from is not None and self.transfer_from.resolve() == self.out.resolve():
            raise InputError("--transfer-from and --out are one folder: give --out another.")
        if self.algo == "bayesian":
            from haq_env.search.bayesian import check_installed

            check_installed()

    @property
    def is_baseline(self) -> bool:
        """Whether the method is a baseline and no agent."""
        from haq_env.search import SEARCH

        return self.algo in SEARCH

    def task_settings(self) -> dict[str, Any]:
        """Return the environment's arguments that were given."""
        given = {
            name: getattr(self, name)
            for name in (
                "network",
                "dataset",
                "checkpoint",
                "hardware",
                "metric",
                "bits",
                "evaluator",
            )
        }
        given["budget"] = _number(self.budget)
        given |= {"seed": self.seed, "device": self.device}
        return {name: value for name, value in given.items() if value is not None}

    def agent_settings(self) -> dict[str, Any]:
        """Return the agent's arguments that were given."""
        if self.algo != "haq-ddpg":
            return {}
        from haq_env.agents.haq_ddpg import HaqSwitches

        return {"switches": HaqSwitches() if self.haq == "paper" else HaqSwitches.released()}

    def record(self) -> dict[str, Any]:
        """Return what decides the outcome of the search, for comparison on resume."""
        kept = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items()}
        kept["bits"] = None if self.bits is None else list(self.bits)
        for name in ("out", "resume", "overwrite", "final_steps", "final_seeds", "shortlist"):
            del kept[name]
        if self.algo != "haq-ddpg":
            del kept["haq"]  # decides nothing
        return kept


def _number(budget: str | None) -> float | str | None:
    try:
        return None if budget is None else float(budget)
    except ValueError:
        return budget


def run(settings: Settings, console: Console) -> None:
    """Search, finetune, report."""
    import torch

    from haq_env.agents.algorithms import check_fits
    from haq_env.agents.run import search_with_agent
    from haq_env.agents.transfer import Source, apply_agent
    from haq_env.env import make_env
    from haq_env.evaluation.recipe import FINAL
    from haq_env.evaluation.trained import TrainedEvaluator
    from haq_env.final import choose, finish, rows
    from haq_env.report.plots import plot_bits, plot_search
    from haq_env.report.roofline import plot_roofline
    from haq_env.report.tables import comparison_table
    from haq_env.run_folder import NETWORK, open_folder, save_policy
    from haq_env.search.progress import SearchProgress
    from haq_env.search.run import search_with_baseline

    settings.check()
    torch.set_num_threads(settings.threads)
    recipe = replace(FINAL, steps=settings.final_steps)
    source = None if settings.transfer_from is None else Source.open(settings.transfer_from)
    learned = {} if source is None else {"scales": source.scales}
    env = make_env(settings.env, **settings.task_settings(), **learned)
    if not settings.is_baseline:
        check_fits(settings.algo, env)
    if source is not None:
        source.check(settings.algo, env)
        if settings.algo == "haq-ddpg" and source.settings.get("haq") != settings.haq:
            raise InputError(
                f"the agent in {settings.transfer_from} has learned with --haq "
                f"{source.settings.get('haq')}: give that, not --haq {settings.haq}."
            )
    task = env.task
    if not isinstance(task.evaluator, TrainedEvaluator):
        raise InputError(
            f"{settings.env} has an evaluator of its own ({type(task.evaluator).__name__}) and no "
            "network for a final finetuning: use haq_env.agents.run.search_with_agent."
        )
    folder = settings.out
    open_folder(folder, settings.record(), resume=settings.resume, overwrite=settings.overwrite)
    budget = task.budget
    console.print(
        f"[bold]{settings.env}[/bold]: {len(task.layers)} layers of {task.layers.network}, "
        f"{len(task.space.steps)} decisions, {budget.metric} at most {budget.limit:.4g} "
        f"{UNITS[budget.metric]} ({budget.ratio:.3f} of 8 bits), searched by {settings.algo}"
    )
    applied = source is not None and settings.episodes == 0
    if source is not None and applied:
        log = folder / "episodes.csv"
        history = apply_agent(source, env, settings.agent_settings(), log)
    elif settings.is_baseline:
        with SearchProgress(task, settings.episodes, console) as progress:
            history = search_with_baseline(
                task,
                settings.algo,
                settings.episodes + 1,
                settings.seed,
                folder=folder,
                resume=settings.resume,
                progress=progress,
            )
    else:
        with SearchProgress(task, settings.episodes, console) as progress:
            history = search_with_agent(
                env,
                settings.algo,
                settings.episodes,
                settings.seed,
                folder=folder,
                resume=settings.resume,
                progress=progress,
                settings=settings.agent_settings(),
                **({} if source is None else {"prepare": source.warm_start, "warmup": 0}),
            )
    if not history:
        raise KeyboardInterrupt  # before the first evaluation was finished: nothing was found
    if len(history) <= settings.episodes:
        why = "Stopped" if history.interrupted else f"{settings.algo} was done"
        more = "; --resume goes on from here" if history.interrupted else ""
        console.print(f"{why} after {len(history) - 1} episodes{more}.")

    seeds = tuple(range(settings.seed + 1000, settings.seed + 1000 + settings.final_seeds))
    with console.status(f"final finetuning of the {settings.shortlist} best policies"):
        candidates = history[1:] if applied else history  # what the agent decides is what it is
        best = choose(task, candidates, recipe, settings.seed + 2000, settings.shortlist)
    found, uniform = best.bits, task.uniform()
    finals = {}
    scratch = folder / f"{NETWORK}.part"
    for name, bits in {"uniform": uniform, "found": found}.items():
        with console.status(f"final finetuning of the {name} policy, {len(seeds)} times"):
            path = scratch if name == "found" else None
            finals[name] = (bits, finish(task, bits, recipe, seeds, path))
    about = {"env": settings.env, "algorithm": settings.algo, "final_recipe": asdict(recipe)}
    about |= {"torch_threads": torch.get_num_threads()}
    (folder / NETWORK).unlink(missing_ok=True)  # never that of another policy than the file's
    path = save_policy(folder, task, history, best, finals, about)
    if scratch.exists():
        scratch.replace(folder / NETWORK)
    plot_bits({"uniform": uniform, "found": found}, task.layers, folder / "bits.png")
    plot_search(history, history[0].accuracy, task.float_accuracy, folder / "search.png")
    if task.costs.roofs is not None and {"traffic", "latency"} <= task.costs.values.keys():
        highest = {"8 bits": task.space.highest, "found": found}
        plot_roofline(task.layers, task.costs, highest, folder / "roofline.png")
    console.print(comparison_table(rows(task, finals)))
    network = f"{NETWORK}, " if (folder / NETWORK).exists() else ""
    console.print(f"Written: {path} (the policy); beside it {network}episodes.csv, plots.")


def main() -> None:
    """Read the settings and run; what the user gave wrong is one line."""
    lenient()
    console = Console()
    settings = tyro.cli(Settings)
    try:
        run(settings, console)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last finished episode", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
