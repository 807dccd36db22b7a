"""What the environment itself costs: import, construction, the work of an episode.

    python benchmarks/environment.py

Prints met or not met for every figure and writes benchmarks/results/environment.md; exits with 1
if one is not met. Times are of this machine; what is promised are bounds and ratios in one run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import haq_env
from haq_env.env import QuantizationEnv
from haq_env.evaluation import Evaluation
from haq_env.make import make_env

RESULTS = Path(__file__).parent / "results"


def fresh(code: str) -> float:
    """Seconds that a statement takes in a fresh interpreter."""
    script = (
        f"import time\n{code.split('#')[0]}\nstart = time.perf_counter()\n{code.split('#')[1]}\n"
    )
    script += "print(time.perf_counter() - start)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def median(measure: Callable[[], float], times: int) -> float:
    """Median of several measurements."""
    return statistics.median(measure() for _ in range(times))


class Free:
    """An evaluator that takes no time, so that only the environment's own work is left."""

    float_accuracy = 100.0

    def evaluate(self, bits: Any) -> Evaluation:
        """Answer at once."""
        return Evaluation(50.0)


def episode(env: QuantizationEnv, rng: np.random.Generator) -> float:
    """Seconds of one episode of random actions, reset included."""
    actions = rng.uniform(-1, 1, (len(env.task.space.steps), 1)).astype(np.float32)
    start = time.perf_counter()
    env.reset()
    for action in actions:
        env.step(action)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__).parse_args()  # there is nothing to set
    rng = np.random.default_rng(0)
    rows = [
        (
            "`import haq_env` on top of `import gymnasium`",
            median(lambda: fresh("import gymnasium#import haq_env"), 5),
            0.2,
        ),
        (
            "`gym.make` of the default, fresh process",
            median(
                lambda: fresh("import gymnasium, haq_env#gymnasium.make('HAQ-BISMO-Edge-v0')"), 5
            ),
            2.0,
        ),
    ]
    idle = QuantizationEnv(hardware="bismo-edge", evaluator=Free())
    steps = len(idle.task.space.steps)
    own = median(lambda: episode(idle, rng), 200)
    rows.append((f"environment's own work, {steps} steps with projection", own, 0.005))
    env = make_env("HAQ-BISMO-Edge-v0")
    episode(env, rng)  # loads torch, data and weights, once
    rows.append(("an episode of the default task", median(lambda: episode(env, rng), 15), 1.0))

    console = Console(record=True, width=100)
    table = Table("figure", "measured, s", "bound, s", "", title="Environment")
    for name, seconds, bound in rows:
        table.add_row(
            name, f"{seconds:.4f}", f"{bound:g}", "met" if seconds <= bound else "NOT MET"
        )
    console.print(table)
    console.print(
        f"haq-env {haq_env.__version__}, gymnasium {gym.__version__}, "
        f"Python {sys.version.split()[0]}, medians"
    )
    RESULTS.mkdir(exist_ok=True)
    text = "# The environment's own cost\n\n`python benchmarks/environment.py`\n\n```\n"
    (RESULTS / "environment.md").write_text(text + console.export_text() + "```\n", "utf-8")
    sys.exit(any(seconds > bound for _, seconds, bound in rows))


if __name__ == "__main__":
    main()
