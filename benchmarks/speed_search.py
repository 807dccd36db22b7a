"""Sections of speed.py about whole episodes and searches, and what is not evaluation in them."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain_haq
import torch
from speed_measuring import SEED, V1_QUARTER, Row, Times, median_ratio, policies
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from haq_env.agents.algorithms import make_agent
from haq_env.agents.run import search_with_agent
from haq_env.data import Dataset, load_dataset
from haq_env.env import QuantizationEnv
from haq_env.evaluation import RECIPES, Evaluation, Recipe
from haq_env.evaluation.bench import Subject
from haq_env.evaluation.cache import EvaluationCache
from haq_env.evaluation.stopping import EarlyStopping
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.layers import LayerTable
from haq_env.make import make_task
from haq_env.networks import load_network
from haq_env.networks.bundled import find_trained
from haq_env.networks.checkpoint import load_checkpoint
from haq_env.search import SEARCH


def digits() -> tuple[nn.Module, LayerTable, Dataset]:
    """The bundled network and its images."""
    found = find_trained("mobilenet_v1", "digits")
    module = load_network("mobilenet_v1", **dict(found.build))
    assert found.checkpoint is not None
    load_checkpoint(found.checkpoint, module)
    return module.eval(), found.layers, load_dataset("digits", **dict(found.dataset_options))


def contest(
    module: nn.Module, layers: LayerTable, data: Dataset, recipe: Recipe, turns: int
) -> tuple[Times, int]:
    """Episodes of both sides in turn, and how many of ours only looked an answer up."""

    def env(evaluator: Any) -> QuantizationEnv:
        return QuantizationEnv(
            make_task(module, data, "bismo-edge", layers=layers, budget="w3a2", evaluator=evaluator)
        )

    def theirs(batchnorm: bool) -> Callable[[], Any]:
        evaluator = plain_haq.PlainEvaluator(module, layers, data, recipe, batchnorm=batchnorm)
        return plain_haq.PlainDDPG(env(evaluator), SEED).episode

    own = env(TrainedEvaluator(Subject(module, data, layers), recipe))
    steps = len(own.task.space.steps)
    hits: list[bool] = []
    agent = make_agent("haq-ddpg", own, SEED, 1)

    def ours() -> None:
        agent.learn(steps, Hits(hits), reset_num_timesteps=False)

    times = Times({"plain": theirs(True), "as HAQ": theirs(False), "ours": ours}, turns)
    return times, sum(hits)


class Hits(BaseCallback):
    """Notes which episodes only looked their answer up."""

    def __init__(self, hits: list[bool]) -> None:
        super().__init__()
        self.hits = hits

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            self.hits.append(self.locals["infos"][0]["cache_hit"])
        return True


def episode(quick: bool, _: int) -> list[Row]:
    """Whole episodes: the agent acts and learns (haq-ddpg), a policy is measured.

    Both sides pay for convolutions and batch norms, forward and backward, ours in other ways where
    torch's are slow (quantization/convolution.py): they are the larger part of our episode, so
    what is left cannot give 3 x.
    torch.compile was tried: a training step of the float network takes 0.72 of the eager one
    compiled, no less than ours (section step), after minutes of compiling.
    """
    small = V1_QUARTER.data(2048, 1024)
    subjects = {
        "bundled digits, 28 steps of 32": (*digits(), RECIPES["finetune"]),
        f"{V1_QUARTER.label}, 16 steps of 128, 1,024 validated": (
            V1_QUARTER.module(),
            V1_QUARTER.layers(),
            small,
            Recipe(steps=16, batch_size=128),
        ),
    }
    rows = []
    for label, subject in list(subjects.items())[: 1 if quick else 2]:
        times, hits = contest(*subject, turns=1 if quick else 5)
        note = f" ({hits} remembered)" if hits else ""
        rows.append(
            times.faster(f"{label}{note}: plain / ours, both re-estimate", "ours", "plain", 3)
        )
        rows.append(
            times.told(f"{label}: plain without re-estimation / ours with", "as HAQ", "ours")
        )
    return rows


def search(quick: bool, episodes: int) -> list[Row]:
    """A search on the bundled network, with the cache and early rejection, against plain episodes.

    The plain search takes its number of episodes times the median of a few of them, which differ
    little. Of our search, every policy is measured again in full: the winner must be the same.
    Finetuning, which both sides share, bounds the ratio: rejection saves validation only, and the
    cache only what is asked twice. Giving up while finetuning was tried on the losses of 300
    policies of haq-ddpg and evolution: they rank with the final accuracy by 0.93 and 0.79 half-way,
    and an upper bound of a forecast from them (two standard deviations) spares a quarter of the
    steps without losing the winner. That would not give 5 x either.
    The last row is wall time on two cores: evolution with two workers, which measure its first 50
    policies side by side, against plain episodes with two threads. Searches that know all their
    policies beforehand (random, integer programs) gain more, see "2 workers" in section overhead.
    """
    episodes = 4 if quick else episodes
    module, layers, data = digits()
    recipe = RECIPES["finetune"]
    times, _ = contest(module, layers, data, recipe, 1 if quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        cache = EvaluationCache(Path(folder) / "cache.sqlite")
        subject = Subject(module, data, layers)
        rejecting = TrainedEvaluator(subject, recipe, SEED, cache, stopping=EarlyStopping())
        task = make_task(
            module, data, "bismo-edge", layers=layers, budget="w3a2", evaluator=rejecting
        )
        cpu = time.process_time()
        history = search_with_agent(QuantizationEnv(task), "haq-ddpg", episodes, SEED)
        cpu = time.process_time() - cpu
        cache.close()
    per_episode = statistics.median(times.cpu["plain"])
    ratio = per_episode * episodes / cpu
    hits = sum(trial.cache_hit for trial in history)
    full = TrainedEvaluator(Subject(module, data, layers), recipe)
    answers = [full.evaluate(trial.bits).accuracy for trial in history]
    best = history.best
    lost = max(answers) - full.evaluate(best.bits).accuracy
    share = max(answers) / 100
    noise = 100 * (share * (1 - share) / len(data.val)) ** 0.5  # one standard error of the images
    return [
        Row(
            f"{episodes} episodes, cache and early rejection, {hits} remembered: plain / ours",
            ">= 5 x",
            f"{ratio:.3g} = {per_episode:.3g} s x {episodes} / {cpu:.4g} s",
            ratio >= 5,
        ),
        Row(
            "its winner, measured in full, below the best of its policies",
            f"<= {noise:.1f} points",
            f"{lost:.2f} points",
            lost <= noise,
        ),
        both_cores(quick, episodes),
    ]


def both_cores(quick: bool, episodes: int) -> Row:
    """Wall time of a search with two workers, against plain episodes with two threads."""
    module, layers, data = digits()
    recipe = RECIPES["finetune"]
    torch.set_num_threads(1 if quick else 2)  # threads that wait for a busy core wait long
    times, _ = contest(module, layers, data, recipe, 1 if quick else 3)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        evaluator = TrainedEvaluator(
            Subject(module, data, layers),
            recipe,
            SEED,
            EvaluationCache(Path(folder) / "cache.sqlite"),
            workers=2,
            stopping=EarlyStopping(),
        )
        task = make_task(
            module, data, "bismo-edge", layers=layers, budget="w3a2", evaluator=evaluator
        )
        start = time.perf_counter()
        SEARCH["evolution"](task, episodes, SEED)
        seconds = time.perf_counter() - start
        task.close()
    per_episode = statistics.median(times.wall["plain"])
    ratio = per_episode * episodes / seconds
    return Row(
        f"{episodes} evaluations of evolution on two cores, load {os.getloadavg()[0]:.1f}: "
        "plain / ours",
        "",
        f"{ratio:.3g} (wall) = {per_episode:.3g} s x {episodes} / {seconds:.4g} s",
    )


def prefix(quick: bool, _: int) -> list[Row]:
    """Searches without finetuning, with and without what policies that begin alike share.

    Both sides take turns, each with a memory that is empty at the start; they find the same.
    """
    rows = []
    evaluations, turns = (20, 1) if quick else (150, 3)
    for name in ("greedy", "annealing", "evolution", "random"):
        seconds: dict[int, list[float]] = {512: [], 0: []}
        found = []
        for _turn in range(turns):
            for megabytes, taken in seconds.items():
                task = make_task(evaluator="ptq_bn", budget="w3a2", reuse=megabytes)
                task.evaluate(task.uniform())  # reads network and images, and traces once
                start = time.process_time()
                found.append(SEARCH[name](task, evaluations, SEED).best_so_far())
                taken.append(time.process_time() - start)
        assert all(one == found[0] for one in found), "reuse changes no answer"
        pair = " / ".join(f"{statistics.median(seconds[each]):.3g}" for each in (0, 512))
        text = f"{median_ratio(seconds[0], seconds[512]):.3g} ~ {pair} s"
        rows.append(Row(f"{name}, {evaluations} evaluations, digits: without / with", "", text))
    return rows


class Free:
    """An evaluator that answers at once."""

    float_accuracy = 100.0

    def evaluate(self, bits: Any) -> Evaluation:
        """Answer."""
        return Evaluation(50.0)


def overhead(quick: bool, _: int) -> list[Row]:
    """What is not evaluation: the environment's own work, a known answer, worker processes."""
    env = QuantizationEnv(hardware="bismo-edge", evaluator=Free())
    rng, own = np.random.default_rng(SEED), []
    for _turn in range(20 if quick else 200):
        actions = rng.uniform(-1, 1, (len(env.task.space.steps), 1)).astype(np.float32)
        start = time.process_time()
        env.reset()
        for action in actions:
            env.step(action)
        own.append(1000 * (time.process_time() - start))
    module, layers, data = digits()
    hits: dict[str, list[float]] = {"in the file": [], "in memory": []}
    with tempfile.TemporaryDirectory() as folder:
        cache = EvaluationCache(Path(folder) / "cache.sqlite")
        first, second = (
            TrainedEvaluator(Subject(module, data, layers), RECIPES["ptq_bn"], SEED, cache)
            for _side in range(2)
        )
        known = [bits for _number, bits in zip(range(10), policies(layers), strict=False)]
        for bits in known:
            first.evaluate(bits)
        second.evaluate(known[0])  # reads network and images, once
        for bits in known[1:]:
            for times in hits.values():
                start = time.process_time()
                assert second.evaluate(bits).cache_hit
                times.append(1000 * (time.process_time() - start))
        cache.close()
    rows = [
        Row(
            f"an episode's own work, {len(env.task.space.steps)} steps",
            "< 5 ms",
            f"{statistics.median(own):.2f} ms",
            statistics.median(own) < 5,
        )
    ]
    for where, times in hits.items():
        took = statistics.median(times)
        rows.append(Row(f"a known answer, {where}", "< 1 ms", f"{took:.3f} ms", took < 1))
    return [*rows, workers(quick)]


def workers(quick: bool) -> Row:
    """Two worker processes of one thread against one process with both; wall time, in turn."""
    module, layers, data = digits()
    count, tier = (4, "ptq_bn") if quick else (8, "finetune")
    side = {
        n: TrainedEvaluator(Subject(module, data, layers), RECIPES[tier], workers=n, reuse_bytes=0)
        for n in (1, 2)
    }
    drawn = {n: policies(layers) for n in side}
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2 if quick else 4):
        for n, evaluator in side.items():
            batch = [next(drawn[n]) for _ in range(count)]
            torch.set_num_threads(2 if n == 1 else 1)
            start = time.perf_counter()
            evaluator.evaluate_batch(batch)
            if turn:  # the first one starts the processes
                times[n].append(time.perf_counter() - start)
    torch.set_num_threads(1)
    side[2].close()
    ratio = median_ratio(times[1], times[2])
    pair = " / ".join(f"{count / statistics.median(times[n]):.3g}" for n in (2, 1))
    return Row(
        f"2 workers / one process with 2 threads, digits, {tier}, load {os.getloadavg()[0]:.1f}",
        ">= 1.3 x",
        f"{ratio:.3g} (wall) = {pair} evaluations/s",
        ratio >= 1.3,
    )
