"""Proxies are ranked on policies of equal bits, and never on the images of the truth."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import proxy_rank
import proxy_study
import pytest
from ranking import kendall, ranking, reliability, spearman
from scipy.stats import kendalltau, spearmanr

from haq_env.data import load_dataset
from haq_env.errors import InputError
from haq_env.make import make_task
from haq_env.policy import ACTIVATION, WEIGHT

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_rank_correlations_are_scipys_and_their_intervals_hold_them():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    proxy = truth + rng.normal(size=40)
    found = ranking(proxy, truth, repetitions=300)
    assert found.spearman.value == pytest.approx(spearmanr(proxy, truth)[0], abs=1e-12)
    assert found.kendall.value == pytest.approx(kendalltau(proxy, truth)[0], abs=1e-12)
    tied = rng.integers(0, 4, size=(100, 2, 12)).astype(float)  # more rows than are taken at once
    both = [[spearmanr(*pair)[0], kendalltau(*pair)[0]] for pair in tied]
    ours = np.stack([spearman(tied[:, 0], tied[:, 1]), kendall(tied[:, 0], tied[:, 1])], axis=1)
    np.testing.assert_allclose(ours, both, atol=1e-12)
    for one in (found.spearman, found.kendall):
        assert -1 <= one.low < one.value < one.high <= 1
    assert ranking(-truth, truth, repetitions=50).spearman.value == pytest.approx(-1)
    assert ranking(-truth, truth, repetitions=50).overlap == 0
    assert ranking(truth**3, truth, repetitions=50).overlap == 1


def test_the_reliability_of_a_mean_bounds_what_a_perfect_proxy_can_reach():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)
    for noise, seeds in ((1.0, 2), (2.0, 6), (0.1, 3)):
        measured = truth[:, None] + noise * rng.normal(size=(truth.size, seeds))
        expected = 1 / (1 + noise**2 / seeds)
        assert reliability(measured) == pytest.approx(expected, abs=0.02)
        reached = np.corrcoef(truth, measured.mean(axis=1))[0, 1]
        assert reached == pytest.approx(np.sqrt(expected), abs=0.02)
    assert np.isnan(reliability(truth[:, None]))
    assert np.isnan(reliability(np.ones((5, 3))))


def test_what_is_the_same_for_all_policies_ranks_nothing():
    found = ranking(np.ones(10), np.arange(10.0), repetitions=50)
    assert np.isnan([found.spearman.value, found.kendall.value, found.spearman.low]).all()


def test_a_ranking_of_too_few_or_of_no_numbers_is_refused():
    with pytest.raises(InputError, match="four policies or more"):
        ranking(np.arange(3.0), np.arange(3.0))
    with pytest.raises(InputError, match="finite"):
        ranking(np.array([1.0, 2.0, 3.0, np.inf]), np.arange(4.0))


def test_all_policies_are_permutations_of_one_multiset_and_ends_stay_at_8_bits():
    space = make_task("mobilenet_v2", evaluator="ptq_bn").space
    policies = proxy_study.permutations(space, 20, 0)
    assert len(np.unique(policies, axis=0)) == 20
    assert (policies[:, [0, -1]] == 8).all()
    for side in (WEIGHT, ACTIVATION):
        counts = {tuple(sorted(Counter(p[1:-1, side].tolist()).items())) for p in policies}
        ((multiset),) = counts
        assert [width for width, _ in multiset] == [2, 3, 4, 5]
        assert max(n for _, n in multiset) - min(n for _, n in multiset) <= 1
    assert (proxy_study.permutations(space, 20, 0) == policies).all()


def test_proxies_and_truth_are_measured_on_different_images_and_neither_on_test_images():
    whole = load_dataset("digits")
    half = proxy_study.halves(whole)
    joined = np.concatenate([half.val.images, half.test.images])
    assert (joined == whole.val.images).all()
    assert len(half.val) == len(half.test) == 225


def rank(folder: Path) -> list[str]:
    script = str(BENCHMARKS / "proxy_rank.py")
    options = ["--quick", "--epochs", "0.1", "--policies", "4", "--sensitivities", "fit"]
    return [sys.executable, script, "--out", str(folder), *options]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_its_table_is_that_of_its_numbers(tmp_path):
    process = subprocess.Popen(rank(tmp_path), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("policy-001.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = next(tmp_path.rglob("policy-000.json"))
    before = first.stat().st_mtime_ns
    done = subprocess.run(rank(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == before
    record = json.loads(first.read_text())
    bits = np.array([[int(w), int(a)] for w, a in zip(*record["bits"], strict=True)])
    whole = load_dataset("digits")
    task = make_task("mobilenet_v1", proxy_study.halves(whole), evaluator="ptq_bn")
    assert record["proxies"]["ptq_bn"] == task.evaluate(bits).accuracy

    with next(tmp_path.rglob("proxy_rank_digits.csv")).open() as file:
        rows = list(csv.DictReader(file))
    full = [row for row in rows if row["quantity"].startswith("full")]
    truth = np.array([float(row["truth"]) for row in full]).reshape(4, 2).mean(axis=1)
    proxy = [float(row["val"]) for row in rows if row["quantity"] == "ptq_bn"]
    expected = ranking(np.array(proxy), truth).spearman.value
    line = next(line for line in done.stdout.splitlines() if line.startswith("| ptq_bn |"))
    assert f"| {expected:.2f} [" in line or (np.isnan(expected) and "| - |" in line)
    assert "not decided: ptq_bn" in done.stdout  # four policies are too few


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"policies": 3}, "policies must be 4 or more"),
        ({"sensitivities": ("hawk",)}, "unknown sensitivity 'hawk'"),
        ({"steps": (0,)}, "steps must be 1 or more"),
        ({"networks": ("resnet20",)}, "no trained weights of network 'resnet20'"),
    ],
)
def test_what_cannot_be_measured_is_an_error_before_anything_is_spent(wrong, complaint):
    with pytest.raises(InputError, match=complaint):
        proxy_rank.checked(proxy_study.Settings(**wrong))
