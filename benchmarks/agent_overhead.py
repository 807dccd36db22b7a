"""What the agents cost beside the evaluations: an update, a whole search, a step.

    python benchmarks/agent_overhead.py [--full]

An update of DDPG is compared with the same arithmetic in bare torch, in turns in one process. A
search is 600 episodes of 42 decisions with an evaluator that answers at once; it is extrapolated
from a shorter one, or with --full measured in whole for ddpg and sac. Prints met or not met for
every figure and writes benchmarks/results/agent_overhead.md; exits with 1 if one is not met. Times
are of this machine, of one thread and on the processor, so that other work on it counts little;
what is promised are bounds and ratios in one run.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import stable_baselines3
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import mse_loss

import haq_env
from haq_env.agents.algorithms import ALGORITHMS, FUSED, make_agent
from haq_env.agents.haq_switches import HaqSwitches
from haq_env.agents.run import search_with_agent
from haq_env.env import QuantizationEnv
from haq_env.evaluation import Evaluation
from haq_env.layers import LayerTable
from haq_env.make import make_task

RESULTS = Path(__file__).parent / "results"
EPISODES, RATIO, MINUTES = 600, 1.2, 5.0
STEPS = 42
SHORT, WARMUP = 10, 2  # episodes of the shorter search, and how many of them are random
BATCH, TAU = 64, 0.01
ROUNDS, UPDATES = 20, 25


@dataclass(frozen=True)
class Settings:
    """Measure what the agents cost beside the evaluations."""

    full: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure two searches in whole, too."""


class Free:
    """An evaluator that takes no time, so that only environment and agent are left."""

    float_accuracy = 100.0

    def evaluate(self, bits: Any) -> Evaluation:
        """Answer at once."""
        return Evaluation(float(bits.mean()) * 10)


def environment(name: str) -> QuantizationEnv:
    """The default network without its last blocks, with the actions that an algorithm takes."""
    layers = make_task(hardware="bismo-edge", evaluator=Free()).layers
    few = (*layers.layers[: STEPS // 2 + 1], layers.layers[-1])  # first and last are not searched
    task = make_task(
        nn.Identity(),
        layers=LayerTable("first blocks", few, layers.input_shape),
        evaluator=Free(),
        hardware="bismo-edge",
        budget=0.6,
    )
    assert len(task.space.steps) == STEPS
    return QuantizationEnv(task, actions=ALGORITHMS[name].actions)


# -- an update ---------------------------------------------------------------------------------


class Bare:
    """DDPG's update without a library: a critic step, an actor step, the moving targets.

    Args:
        hidden: sizes of the two hidden layers.
        rate: learning rate of both.
        fused: Adam with one kernel for all tensors.
    """

    def __init__(self, hidden: tuple[int, int], rate: float, *, fused: bool) -> None:
        def network(inputs: int, last: nn.Module) -> nn.Sequential:
            a, b = hidden
            return nn.Sequential(
                nn.Linear(inputs, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 1), last
            )

        self.actor, self.actor_target = (network(10, nn.Tanh()) for _ in range(2))
        self.critic, self.critic_target = (network(11, nn.Identity()) for _ in range(2))
        self.adams = [
            torch.optim.Adam(each.parameters(), lr=rate, fused=fused or None)
            for each in (self.actor, self.critic)
        ]
        self.data = [torch.rand(BATCH, size) for size in (10, 1, 10, 1, 1)]

    def update(self, count: int) -> None:
        """Do the arithmetic of some updates on one fixed mini-batch."""
        states, actions, following, rewards, dones = self.data
        for _ in range(count):
            with torch.no_grad():
                pairs = torch.cat([following, self.actor_target(following)], dim=1)
                wanted = rewards + (1 - dones) * self.critic_target(pairs)
            loss = mse_loss(self.critic(torch.cat([states, actions], dim=1)), wanted)
            self.adams[1].zero_grad()
            torch.autograd.backward(loss)
            self.adams[1].step()
            loss = -self.critic(torch.cat([states, self.actor(states)], dim=1)).mean()
            self.adams[0].zero_grad()
            torch.autograd.backward(loss)
            self.adams[0].step()
            with torch.no_grad():
                for net, target in (
                    (self.critic, self.critic_target),
                    (self.actor, self.actor_target),
                ):
                    for new, old in zip(net.parameters(), target.parameters(), strict=True):
                        old.mul_(1 - TAU).add_(new, alpha=TAU)


def trained(name: str, **overrides: Any) -> Any:
    """An agent that has something in its memory and has not been updated."""
    agent = make_agent(name, environment(name), 0, 10, **overrides)
    agent.learn(10 * STEPS)
    return agent


def interleaved(contenders: dict[str, Callable[[int], None]]) -> dict[str, float]:
    """Median microseconds of one update of each, in turns, so that a busy machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(ROUNDS + 2):
        for name, update in contenders.items():
            start = time.process_time()
            update(UPDATES)
            if round_ >= 2:  # the first ones build what is kept
                times[name].append((time.process_time() - start) / UPDATES * 1e6)
    return {name: statistics.median(each) for name, each in times.items()}


def updates() -> tuple[dict[str, float], list[tuple[str, str, str]]]:
    """Microseconds by contender, and (label, contender, its yardstick) for every ratio."""
    small: dict[str, Any] = {"net_arch": [128, 128]}
    agents = {
        "ddpg": trained("ddpg"),
        "ddpg, fused Adam": trained("ddpg", policy_kwargs={**small, **FUSED}),
        "ddpg, SB3's n-step memory": trained("ddpg", n_steps=STEPS),
        "haq-ddpg": trained("haq-ddpg"),
    }
    bare = {
        "bare 128-128": Bare((128, 128), 1e-3, fused=False),
        "bare 128-128, fused Adam": Bare((128, 128), 1e-3, fused=True),
        "bare 300-300, fused Adam": Bare(HaqSwitches().hidden, 1e-3, fused=True),
    }
    contenders: dict[str, Callable[[int], None]] = {
        name: lambda count, agent=agent: agent.train(count, BATCH)  # type: ignore[misc]
        for name, agent in agents.items()
    }
    contenders |= {name: each.update for name, each in bare.items()}
    compared = [
        ("ddpg as it is set", "ddpg", "bare 128-128"),
        ("ddpg, SB3's n-step memory", "ddpg, SB3's n-step memory", "bare 128-128"),
        ("ddpg, fused Adam on both sides", "ddpg, fused Adam", "bare 128-128, fused Adam"),
        ("ddpg, fused Adam, to plain bare", "ddpg, fused Adam", "bare 128-128"),
        ("haq-ddpg, fused Adam on both sides", "haq-ddpg", "bare 300-300, fused Adam"),
    ]
    return interleaved(contenders), compared


# -- a search ----------------------------------------------------------------------------------


def search_minutes(name: str) -> float:
    """Minutes outside the evaluator of a search of 600 episodes, from a shorter one.

    Its random episodes and its other ones are timed by themselves: the former learn nothing.
    """
    env, marks = environment(name), []
    search_with_agent(
        env, name, SHORT, 0, warmup=WARMUP, progress=lambda _: marks.append(time.process_time())
    )
    episodes = np.diff(marks)
    on_policy = ALGORITHMS[name].family == "on"
    learning = episodes[1:] if on_policy else episodes[WARMUP + 2 :]
    return float(np.mean(learning)) * EPISODES / 60


def full_minutes(name: str) -> float:
    """Minutes of a search of 600 episodes."""
    env = environment(name)
    start = time.process_time()
    search_with_agent(env, name, EPISODES, 0)
    return (time.process_time() - start) / 60


def step_microseconds() -> float:
    """Median microseconds of a step of the environment, the projection at the end included."""
    env, rng, times = environment("ddpg"), np.random.default_rng(0), []
    for _ in range(100):
        actions = rng.uniform(-1, 1, (STEPS, 1)).astype(np.float32)
        start = time.process_time()
        env.reset()
        for action in actions:
            env.step(action)
        times.append((time.process_time() - start) / STEPS * 1e6)
    return statistics.median(times)


def main() -> None:
    """Measure, print, write."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(1)
    micro, compared = updates()
    rows: list[tuple[str, str, str, bool | None]] = []
    for label, name, yardstick in compared:
        ratio = micro[name] / micro[yardstick]
        text = f"{ratio:.2f} = {micro[name]:.0f} / {micro[yardstick]:.0f} us"
        rows.append((f"update: {label}", text, f"{RATIO}", ratio <= RATIO))
    rows.append(("a step of the environment", f"{step_microseconds():.0f} us", "", None))
    for name in ALGORITHMS:
        minutes = search_minutes(name)
        rows.append((f"search: {name}", f"{minutes:.2f} min", f"{MINUTES:g}", minutes <= MINUTES))
    if settings.full:
        for name in ("ddpg", "sac"):
            minutes = full_minutes(name)
            text = f"{minutes:.2f} min"
            rows.append((f"search in whole: {name}", text, f"{MINUTES:g}", minutes <= MINUTES))

    console = Console(record=True, width=100)
    table = Table("figure", "measured", "bound", "", title="Agents")
    for label, text, bound, met in rows:
        table.add_row(label, text, bound, "" if met is None else "met" if met else "NOT MET")
    console.print(table)
    console.print(
        f"Update: batch {BATCH}, medians of {ROUNDS} rounds of {UPDATES} in turns. Search: "
        f"{EPISODES} episodes of {STEPS} steps outside the evaluator, from {SHORT} episodes. "
        "Processor time.\n"
        f"haq-env {haq_env.__version__}, stable-baselines3 {stable_baselines3.__version__}, "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python benchmarks/agent_overhead.py", *sys.argv[1:]])
    text = f"# The agents' own cost\n\n`{command}`\n\n```\n{console.export_text()}```\n"
    (RESULTS / "agent_overhead.md").write_text(text, "utf-8")
    sys.exit(any(met is False for *_, met in rows))


if __name__ == "__main__":
    main()
