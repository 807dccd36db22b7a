"""Doing less for the same answers: batches, workers, shared beginnings, early stopping."""

import os
import pickle
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn

from haq_env.data import Dataset, Split
from haq_env.env import QuantizationEnv
from haq_env.errors import InputError
from haq_env.evaluation import Evaluation, Recipe, prefix
from haq_env.evaluation.batch import WorkerError
from haq_env.evaluation.chain import Chain, NotAChain
from haq_env.evaluation.stopping import EarlyStopping, Score, upper_bound
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.leaderboard.protocol import TRACKS
from haq_env.make import make_task
from haq_env.search import SEARCH
from haq_env.search.history import History, measure_all


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Residual(nn.Module):
    """A block that nothing can be cut inside of, and that starts with an in-place ReLU."""

    def __init__(self, channels):
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.two = nn.Conv2d(channels, channels, 1)

    def forward(self, inputs):
        inputs = nn.functional.relu(inputs, inplace=True)
        return inputs + self.two(nn.functional.relu(self.bn(self.one(inputs))))


class Branching(nn.Module):
    """What it computes depends on the batch, so that torch.fx cannot follow it."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, inputs):
        return self.body(inputs if inputs.shape[0] > 10**6 else inputs * 1.0)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), Residual(8), Residual(8),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip


def images(count=200) -> Dataset:
    rng = np.random.default_rng(0)

    def part(size):
        pixels = rng.integers(0, 256, (size, 1, 8, 8), dtype=np.uint8)
        return Split(pixels, (pixels[:, 0, :4].mean((1, 2)) // 86).astype(np.int64))

    return Dataset("noise", 3, (0.5,), (0.3,), part(count), part(count), part(20))


def small(module=None, **settings):
    settings = {"hardware": "size", "budget": 0.7, "evaluator": "ptq_bn", **settings}
    return make_task(module or network(), images(), **settings)


def some(task, count, seed=0):
    return task.space.random(np.random.default_rng(seed), count)


def accuracies(results):
    return [result.accuracy for result in results]


# -- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["ptq_bn", Recipe(steps=2)])
def test_a_batch_gives_the_answers_of_one_by_one_in_order(tier):
    task, alone = small(evaluator=tier), small(evaluator=tier)
    policies = some(task, 6)
    policies = np.concatenate([policies, policies[1:3]])
    batch = task.evaluate_batch(policies)
    single = [alone.evaluate(bits) for bits in policies]
    assert accuracies(batch) == accuracies(single)
    assert [r.cache_hit for r in batch] == [r.cache_hit for r in single] == [False] * 6 + [True] * 2
    assert task.evaluator.evaluations == alone.evaluator.evaluations == 8
    assert task.evaluate_batch([]) == []


def test_a_batch_takes_answers_from_the_cache_and_leaves_its_own_there(tmp_path):
    first, second = (small(cache=tmp_path / "answers.sqlite") for _ in range(2))
    policies = some(first, 4)
    found = first.evaluate_batch(policies[:3])
    again = second.evaluate_batch(policies)
    assert [r.cache_hit for r in again] == [True, True, True, False]
    assert accuracies(again)[:3] == accuracies(found)


def test_a_wrong_policy_in_a_batch_is_an_error_before_anything_is_measured():
    task = small()
    policies = [*some(task, 2), np.full((6, 2), 9)]
    with pytest.raises(InputError, match="bits"):
        task.evaluate_batch(policies)
    assert task.evaluator.evaluations == 0
    assert task.evaluator.seconds == 0


def test_an_evaluator_without_batches_is_asked_one_by_one():
    class Own:
        float_accuracy = 90.0

        def evaluate(self, bits):
            return Evaluation(float(bits.mean()))

    task = make_task(evaluator=Own())
    policies = some(task, 3)
    assert accuracies(task.evaluate_batch(policies)) == [float(b.mean()) for b in policies]
    with pytest.raises(InputError, match="workers: an evaluator of your own"):
        make_task(evaluator=Own(), workers=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_on_a_gpu_gives_the_answers_of_one_by_one():
    task, alone = small(device="cuda"), small(device="cuda")
    policies = some(task, 4)
    single = [alone.evaluate(bits) for bits in policies]
    assert accuracies(task.evaluate_batch(policies)) == accuracies(single)


# -- worker processes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crew():
    """A task with two workers, which take some seconds to start."""
    task = small(evaluator=Recipe(steps=3), workers=2)
    yield task
    task.evaluator.close()


def test_workers_give_the_answers_of_one_process_whatever_its_threads(crew):
    alone = small(evaluator=Recipe(steps=3))
    policies = some(alone, 8)
    policies = np.concatenate([policies, policies[:1]])
    expected = [alone.evaluate(bits) for bits in policies]
    other = some(alone, 1, seed=7)[0]
    torch.set_num_threads(2)
    try:
        batch = crew.evaluate_batch(policies)
        single = crew.evaluate(other)
        assert crew.float_accuracy == alone.float_accuracy
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert accuracies(batch) == accuracies(expected)
    assert [r.cache_hit for r in batch] == [r.cache_hit for r in expected]
    assert single.accuracy == alone.evaluate(other).accuracy


def test_a_worker_that_dies_is_one_clear_error_and_what_arrived_is_kept(crew):
    policies = some(crew, 12, seed=3)
    crew.evaluate_batch(policies[:4])
    for process in list(crew.evaluator.measurer._workers._pool._processes.values()):
        process.kill()
    with pytest.raises(WorkerError, match="a worker process ended"):
        crew.evaluate_batch(policies[4:])
    assert all(result.cache_hit for result in crew.evaluate_batch(policies[:4]))


@pytest.mark.slow  # new processes start
def test_after_a_worker_has_died_the_next_batch_starts_new_ones(crew):
    policies = some(crew, 6, seed=5)
    crew.evaluate_batch(policies[:2])
    pool = crew.evaluator.measurer._workers._pool
    pool._processes.copy().popitem()[1].kill()
    deadline = time.monotonic() + 30
    while not pool._broken and time.monotonic() < deadline:
        time.sleep(0.01)  # else the other one may measure all before anybody has noticed
    with pytest.raises(WorkerError, match="a worker process ended"):
        crew.evaluate_batch(policies[2:4])
    alone = small(evaluator=Recipe(steps=3))
    found = crew.evaluate_batch(policies[4:])
    assert accuracies(found) == accuracies(alone.evaluate_batch(policies[4:]))


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "search.py"
    script.write_text(
        textwrap.dedent("""
        from haq_env.make import make_task
        import numpy as np
        task = make_task(evaluator="ptq_bn", workers=2)
        task.evaluate_batch(task.space.random(np.random.default_rng(0), 2))
        """)
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("haq_env.evaluation.batch.WorkerError: the worker processes could not start.")
    )
    assert 'if __name__ == "__main__":' in done.stderr


def test_a_network_that_cannot_travel_is_an_error_with_its_reason():
    class Local(nn.Sequential):
        pass

    task = small(Local(*network()), workers=2)
    with pytest.raises(InputError, match="cannot be sent to another process"):
        task.evaluate_batch(some(task, 2))
    with pytest.raises(InputError, match="workers must be an integer, 1 or more"):
        make_task(workers=0)


# -- shared beginnings -------------------------------------------------------------------------


def relatives(task, count):
    """Policies of a search: mutations of mutations, most of them alike in the beginning."""
    rng = np.random.default_rng(0)
    family = [task.space.clip(np.full_like(task.space.highest, 5))]
    for _ in range(count - 1):
        bits = family[rng.integers(len(family))].copy()
        layer, side = task.space.steps[rng.integers(len(task.space.steps))]
        bits[layer, side] += rng.choice([-2, -1, 1, 2])
        family.append(task.space.clip(bits))
    return family


@pytest.mark.parametrize("quantizer", ["linear", "kmeans"])
@pytest.mark.parametrize("limit", [512, 2])
def test_shared_beginnings_change_no_answer_and_no_statistic(quantizer, limit):
    fast, plain = (small(quantizer=quantizer, reuse=reuse) for reuse in (limit, 0))
    for bits in relatives(fast, 40):
        assert (
            fast.evaluator.measurer.measure(bits).accuracy
            == plain.evaluator.measurer.measure(bits).accuracy
        )
        left, right = (task.evaluator.bench.network.state_dict() for task in (fast, plain))
        assert all(torch.equal(left[name], right[name]) for name in left)
    shared = fast.evaluator.bench.prefixes(fast.evaluator.recipe)
    assert shared.parts_run < shared.parts_asked
    assert shared.size <= limit << 20


def test_what_is_too_much_to_keep_is_let_go_of_while_it_comes(monkeypatch):
    task = small(reuse=0.001)  # less than one batch at any cut
    held: list[int] = []
    add = prefix._Holding.add

    def watched(self, to, passed):
        add(self, to, passed)
        held.append(len(self.train) + len(self.val))

    monkeypatch.setattr(prefix._Holding, "add", watched)
    policies = relatives(task, 12)
    expected = [small(reuse=0).evaluate(bits).accuracy for bits in policies]
    assert [task.evaluate(bits).accuracy for bits in policies] == expected
    assert held
    assert not any(held)


@pytest.mark.parametrize("tier", ["ptq_bn", Recipe(steps=1)])
def test_a_batch_that_is_interrupted_leaves_what_it_has_measured(tier, monkeypatch):
    task = small(evaluator=tier)
    measurer, left = task.evaluator.measurer, [5]
    measure = measurer.measure

    def interrupted(bits, best):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return measure(bits, best)

    monkeypatch.setattr(measurer, "measure", interrupted)
    history = History()
    with pytest.raises(KeyboardInterrupt):
        measure_all(task, list(some(task, 8)), history)
    if tier != "ptq_bn":  # where beginnings are shared, those that begin alike come first
        assert len(history) == 5
    assert task.evaluator.seconds > 0


@pytest.mark.slow
def test_an_evolution_of_the_bundled_network_is_the_same_with_shared_beginnings():
    runs = [
        SEARCH["evolution"](make_task(evaluator="ptq_bn", reuse=reuse), 40, 0) for reuse in (512, 0)
    ]
    assert [(t.w_bits, t.a_bits, t.accuracy, t.cache_hit) for t in runs[0]] == [
        (t.w_bits, t.a_bits, t.accuracy, t.cache_hit) for t in runs[1]
    ]


def test_a_network_that_cannot_be_cut_is_measured_as_ever_and_says_why():
    task = small(Branching())
    alone = small(Branching(), reuse=0)
    policies = relatives(task, 4)
    assert accuracies(task.evaluate_batch(policies)) == accuracies(alone.evaluate_batch(policies))
    bench = task.evaluator.bench
    assert bench.prefixes(task.evaluator.recipe) is None
    with pytest.raises(NotAChain, match=r"torch\.fx cannot follow it"):
        Chain(bench.network, bench.images["train"].batch(slice(0, 4)))


def test_shared_beginnings_do_not_travel_with_an_evaluator():
    task = small()
    task.evaluate_batch(relatives(task, 5))
    size = len(pickle.dumps(task.evaluator))
    assert size < len(pickle.dumps(small().evaluator)) + 5000


# -- early stopping ----------------------------------------------------------------------------


def test_the_bound_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for share in (0.3, 0.8, 0.97):
        answers = np.arange(450) < round(450 * share)
        missed = 0
        for _ in range(400):
            shown = rng.permutation(answers)
            missed += any(
                upper_bound(int(shown[:n].sum()), n, 450, 0.05 / 15) < answers.mean()
                for n in range(32, 450, 32)
            )
        assert missed / 400 <= 0.05
    assert upper_bound(0, 449, 450, 0.05) <= 1 / 450


@pytest.mark.slow
def test_early_stopping_finds_the_same_winner_with_fewer_images():
    full = make_task(evaluator="ptq_bn")
    fast = make_task(evaluator="ptq_bn", early_stopping=0.05)
    policies = full.project(some(full, 30))
    answers = [full.evaluate(bits).accuracy for bits in policies]
    results, seen = [], 0
    for bits in policies:
        score = Score(450, fast.evaluator.stopping, fast.evaluator.answers.best)
        results.append(fast.evaluate(bits))
        fast.evaluator.bench.judge(bits, fast.evaluator.recipe, 0, score)
        seen += score.seen
    kept = [i for i, result in enumerate(results) if not result.stopped_early]
    assert max(kept, key=lambda i: results[i].accuracy) == int(np.argmax(answers))
    assert [results[i].accuracy for i in kept] == [answers[i] for i in kept]
    assert len(kept) < len(policies)
    assert seen < 0.6 * 450 * len(policies)


def test_a_stopped_answer_is_never_remembered_as_a_full_one(tmp_path):
    file = tmp_path / "answers.sqlite"
    task = make_task(evaluator="ptq_bn", early_stopping=0.05, cache=file)
    good, bad = task.space.uniform(8, 8), task.space.uniform(2, 2)
    best = task.evaluate(good)
    stopped = task.evaluate(bad)
    assert not best.stopped_early
    assert stopped.stopped_early
    again = task.evaluate(bad)
    assert again.stopped_early
    assert (again.accuracy, again.cache_hit) == (stopped.accuracy, True)
    other = make_task(evaluator="ptq_bn", early_stopping=0.05, cache=file)
    assert [r.cache_hit for r in other.evaluate_batch([good, bad])] == [True, False]
    resumed = make_task(evaluator="ptq_bn", early_stopping=0.05)
    resumed.remember(good, best.accuracy)
    resumed.remember(bad, stopped.accuracy)
    assert resumed.evaluate(bad).stopped_early
    plain = make_task(evaluator="ptq_bn", cache=file)
    assert [r.cache_hit for r in plain.evaluate_batch([good, bad])] == [False, False]


def test_early_stopping_is_written_down_where_it_was_used():
    env = QuantizationEnv(task=small(early_stopping=0.1))
    assert env.task.settings["early_stopping"] == 0.1
    assert "early_stopping" not in small().settings
    env.reset()
    done = False
    while not done:
        *_, done, _, info = env.step(np.array([0.0]))
    assert info["stopped_early"] is False
    for wrong in (0.0, 0.7, -1.0):
        with pytest.raises(InputError, match="delta must be in"):
            EarlyStopping(wrong)


def test_no_track_of_the_leaderboard_gives_candidates_up():
    for track in TRACKS.values():
        assert "early_stopping" not in track.settings
    for task in (TRACKS["digits-bismo-edge-w3a2"].task(), make_task()):
        assert task.evaluator.stopping is None


# -- what an episode costs besides -------------------------------------------------------------


def test_a_hit_takes_less_than_a_millisecond():
    task = make_task(evaluator="ptq_bn")
    policy = some(task, 1)[0]
    task.evaluate(policy)
    start = time.process_time()
    for _ in range(100):
        task.evaluate(policy)
    assert (time.process_time() - start) / 100 < 1e-3


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_two_workers_do_more_than_two_threads():
    policies = some(make_task(), 24)
    gains = []
    for _ in range(3):  # other programs may take a core away
        rates = {}
        for workers in (1, 2):
            torch.set_num_threads(2)
            task = make_task(workers=workers)
            task.evaluate_batch(policies[:4])
            start = time.perf_counter()
            task.evaluate_batch(policies[4:])
            rates[workers] = 1 / (time.perf_counter() - start)
            task.evaluator.close()
        torch.set_num_threads(1)
        gains.append(rates[2] / rates[1])
        if gains[-1] > 1.1:  # 1.3 and more on a quiet machine
            break
    assert max(gains) > 1.1
    assert isinstance(task.evaluator, TrainedEvaluator)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_process_that_keeps_freed_memory_is_not_given_new_pages_at_every_step():
    code = """
import resource, sys, torch
from haq_env.malloc import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("none")
    raise SystemExit
def step():
    maps = [torch.ones(1 << 24) for _ in range(3)]  # 64 MiB each
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    told = {
        how: subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
        ).stdout.strip()
        for how in ("plain", "keep")
    }
    if told["keep"] == "none":
        pytest.skip("this C library has no mallopt")
    assert int(told["keep"]) < 0.1 * int(told["plain"])
