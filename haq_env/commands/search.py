"""Search a policy with an agent or a baseline, finetune it, and report (``train_agent.py``)."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from haq_env.agents.methods import algorithm_of, check_method, env_id, methods
from haq_env.errors import InputError, OccupiedError, unknown_name
from haq_env.evaluation.recipe import RECIPES, Recipe
from haq_env.options import OptionalPath
from haq_env.quantization import QUANTIZERS
from haq_env.search import SEARCH
from haq_env.summation import pin

# of a search; what is done with its result may change when it is resumed
_DECIDE_NOTHING = (
    "out",
    "resume",
    "overwrite",
    "workers",
    "cache",
    "final_steps",
    "final_seeds",
    "shortlist",
)


@dataclass(frozen=True)
class Search:
    """Search a mixed-precision policy with an off-the-shelf agent, or a baseline.

    Writes policy.json, network.safetensors, episodes.csv and plots into the folder, and ends with a
    table: the float network, the uniform policy that fits the same budget, and the policy that was
    found. Ctrl-C ends the search and reports what was found until then.

    Exit codes: 0 when policy.json was written, 2 when something given cannot be used, 130 when
    Ctrl-C came before there was a policy to write.
    """

    env: str = "HAQ-BISMO-Edge-v0"
    """Registered environment (see haq-env envs); of a plain id an agent takes its own variant."""
    algo: Annotated[str, arg(metavar="{" + ",".join(methods()) + "}")] = "residual-ppo"
    """Baseline or, from ddpg on, agent; residual-NAME is one that corrects a sensitivity table."""
    haq: Literal["paper", "released"] = "paper"
    """With haq-ddpg: what to follow where HAQ's paper and its released code differ."""
    episodes: int = 300
    """Policies that are tried besides the uniform one; with --transfer-from, 0: decide once."""
    transfer_from: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder of a finished run: start from what its agent has learned there."""
    seed: int = 0
    """Seed of the search, and of the final finetuning."""
    reward_seed: int = 0
    """Seed of the finetuning inside the reward: searches of one problem have the same."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder for everything that is written; runs/ENV-ALGO-SEED when not given."""
    network: Annotated[str | None, arg(metavar="NETWORK")] = None
    """Network with trained weights, or package.module:factory that returns a trained module."""
    dataset: Annotated[str | None, arg(metavar="DATASET")] = None
    """Data set by name, or package.module:factory that returns a haq_env.data.Dataset."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE")] = None
    """Safetensors file with the weights of a named network."""
    hardware: Annotated[str | None, arg(metavar="HARDWARE")] = None
    """Name, TOML, JSON or CSV file, or package.module:Class; else the environment's own."""
    metric: Annotated[str | None, arg(metavar="METRIC")] = None
    """What is limited: latency, energy, size, ...; the environment's own when not given."""
    budget: Annotated[str | None, arg(metavar="BUDGET")] = None
    """Share of the 8-bit network's cost (0.6) or a uniform policy (w4a4)."""
    bits: Annotated[tuple[int, int] | None, arg(metavar="LOW HIGH")] = None
    """Smallest and largest width, within 1 to 8; the environment's own when not given."""
    quantizer: Annotated[str | None, arg(metavar="{" + ",".join(QUANTIZERS) + "}")] = None
    """How weights and activations lose their bits; the environment's own when not given."""
    evaluator: Annotated[Literal["finetune", "ptq_bn"] | None, arg(metavar="{finetune,ptq_bn}")] = (
        None
    )
    """Tier of the reward; the environment's own when not given."""
    reward_steps: Annotated[int | None, arg(metavar="INT")] = None
    """Gradient steps of the reward's finetuning; 28 when not given, whatever the data set."""
    reward_rate: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Its learning rate, first step; 0.05 when not given."""
    inference: Annotated[
        Literal["float", "int8", "auto"] | None, arg(metavar="{float,int8,auto}")
    ] = None
    """Arithmetic of validation: int8 is several times faster where nothing is finetuned."""
    workers: int = 1
    """Processes that share what a baseline asks for at once; agents ask for one by one."""
    cache: OptionalPath = None
    """SQLite file with answers of other runs, to read and to add to."""
    final_steps: int = 280
    """Gradient steps of the final finetuning, for the found and the uniform policy alike."""
    final_seeds: int = 3
    """How many times the final finetuning is repeated, to tell luck from gain."""
    shortlist: int = 5
    """Best policies of the search that are finetuned in full before one of them is chosen."""
    device: str = "cpu"
    """Torch device for finetuning."""
    graphs: Annotated[Literal["auto", "on", "off"] | None, arg(metavar="{auto,on,off}")] = None
    """Whether a CUDA device measures policies side by side; auto, where that is faster."""
    threads: int = 1
    """Torch threads; sums depend on their number, so one is what repeats elsewhere."""
    arithmetic: Annotated[Literal["avx2"] | None, arg(metavar="{avx2}")] = None
    """Add in the order of this kind of x86 processor: the run then repeats on newer ones, too."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in the folder."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Throw away the run that is in the folder."""

    def check(self) -> None:
        """Refuse an unknown method, and numbers that would only fail after the search."""
        if self.algo not in methods(transfer=True):
            raise unknown_name("--algo", self.algo, methods())
        check_method(self.algo)
        self._check_numbers()
        if self.workers > 1 and self.threads > 1:
            raise InputError("each of several --workers has one thread: drop --threads.")
        if self.resume and self.overwrite:
            raise InputError("give --resume or --overwrite, not both.")
        if self.reward_steps is not None and self.reward_steps < 1:
            raise InputError("--reward-steps must be 1 or more; --evaluator ptq_bn takes none.")
        self.reward_recipe()
        if self.transfer_from is not None and self.is_baseline:
            raise InputError(f"{self.algo} is a baseline and has no agent: drop --transfer-from.")
        if self.transfer_from is not None and self.transfer_from.resolve() == self.folder.resolve():
            raise InputError("--transfer-from and --out are one folder: give --out another.")

    def _check_numbers(self) -> None:
        for name in ("episodes", "final_seeds", "shortlist", "threads", "workers"):
            if name == "episodes" and self.transfer_from is not None and self.episodes == 0:
                continue
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if self.final_steps < 0:
            raise InputError(f"final_steps must be 0 or more, not {self.final_steps}.")
        for name in ("seed", "reward_seed"):
            if not 0 <= getattr(self, name) < 2**31:
                raise InputError(f"{name} must be 0 to {2**31 - 1}, not {getattr(self, name)}.")

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        if self.out is not None:
            return self.out
        problem = self.env if self.network is None else self.network
        words = re.findall(r"[\w.]+", f"{problem} {self.algo} {self.seed}")
        return Path("runs") / "-".join(words)

    @property
    def is_baseline(self) -> bool:
        """Whether the method is a baseline and no agent."""
        return self.algo in SEARCH

    @property
    def env_id(self) -> str:
        """Id of the environment that is searched: the method's variant of a plain one."""
        return env_id(self.algo, self.env)

    @property
    def algorithm(self) -> str:
        """What a run is recorded under: with `env_id` it says all that `algo` does."""
        return algorithm_of(self.algo)

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
                "quantizer",
                "inference",
                "graphs",
                "cache",
            )
        }
        given["budget"] = _number(self.budget)
        given["evaluator"] = self.reward_recipe()
        given |= {"seed": self.reward_seed, "device": self.device, "workers": self.workers}
        return {name: value for name, value in given.items() if value is not None}

    def reward_recipe(self) -> str | Recipe | None:
        """Return what measures a policy inside the search; None is the environment's own."""
        if self.reward_steps is None and self.reward_rate is None:
            return self.evaluator
        if self.evaluator == "ptq_bn":
            raise InputError("ptq_bn finetunes nothing: drop --reward-steps and --reward-rate.")
        usual = RECIPES["finetune"]
        steps = usual.steps if self.reward_steps is None else self.reward_steps
        rate = usual.learning_rate if self.reward_rate is None else self.reward_rate
        return replace(usual, steps=steps, learning_rate=rate)

    def agent_settings(self) -> dict[str, Any]:
        """Return the agent's arguments that were given."""
        if self.algorithm != "haq-ddpg":
            return {}
        from haq_env.agents.haq_switches import HaqSwitches

        return {"switches": HaqSwitches() if self.haq == "paper" else HaqSwitches.released()}

    def record(self) -> dict[str, Any]:
        """Return what decides the outcome of the search, for comparison on resume."""
        kept = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items()}
        kept |= {"env": self.env_id, "algo": self.algorithm}
        kept["bits"] = None if self.bits is None else list(self.bits)
        for name in _DECIDE_NOTHING:
            del kept[name]
        if self.algorithm != "haq-ddpg":
            del kept["haq"]
        return kept

    def run(self) -> None:
        """Search, finetune, report."""
        if self.arithmetic is not None:
            pin()  # before anything loads torch
        from haq_env.commands.searching import search
        from haq_env.evaluation.batch import WorkerError
        from haq_env.report.terminal import Live, silence

        try:
            search(self, Live())
        except KeyboardInterrupt:
            print("stopped; --resume goes on from the last finished episode", file=sys.stderr)
            raise SystemExit(130) from None
        except OccupiedError as error:
            way = "" if self.resume else "--resume goes on with it, another --out leaves it alone, "
            raise InputError(f"{error} {way}--overwrite throws it away.") from error
        except WorkerError as error:
            raise InputError(f"{error} --resume goes on from the last finished episode.") from error
        except BrokenPipeError:
            raise
        except OSError as error:  # files are written with errors of their own
            silence()
            where = f": {error.filename}" if error.filename else ""
            raise InputError(f"cannot go on: {error.strerror or error}{where}.") from error


def _number(budget: str | None) -> float | str | None:
    try:
        return None if budget is None else float(budget)
    except ValueError:
        return budget
