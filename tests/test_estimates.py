"""Estimates agree with what is worked out by hand, and intervals cover what they promise."""

import numpy as np
import pytest
import scipy.stats

from haq_env.errors import InputError
from haq_env.report.bootstrap import bootstrap_band, bootstrap_interval
from haq_env.report.estimates import (
    estimate,
    mean_regret,
    performance_profile,
    probability_of_improvement,
)
from haq_env.report.scores import evaluations_to_reach, iqm, iqm_curve, mean, mean_and_error


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),  # floor(1/4) = 0 left out
        ([0.0, 1.0, 5.0], 2.0),  # floor(3/4) = 0 left out: (0 + 1 + 5) / 3
        ([0.0, 1.0, 3.0, 100.0], 2.0),  # one left out at each end: (1 + 3) / 2
        ([9.0, -9.0, 1.0, 2.0, 6.0], 3.0),  # floor(5/4) = 1: (1 + 2 + 6) / 3
        ([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 50.0], 2.0),  # floor(7/4) = 1: (0+1+2+3+4) / 5
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4.5),  # two: (3 + 4 + 5 + 6) / 4
    ],
)
def test_the_iqm_leaves_out_whole_runs_at_both_ends(scores, expected):
    assert iqm(scores) == pytest.approx(expected)
    assert iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25))


def test_one_value_has_a_mean_and_no_error():
    assert mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    value, error = mean_and_error([2.5])
    assert value == 2.5
    assert np.isnan(error)


def test_the_iqm_pools_the_runs_of_all_tasks():
    # Sorted: 0 0 1 3 | 5 and 9 and -1: -1 0 0 1 3 5 9, one left out: (0+0+1+3+5) / 5.
    assert iqm([np.array([9.0, 0.0, 3.0]), np.array([-1.0, 5.0, 1.0, 0.0])]) == pytest.approx(1.8)
    assert iqm(np.array([[0.0, 1.0], [3.0, 100.0]])) == 2.0  # (1 + 3) / 2, not 0.5 and 51.5


def test_the_iqm_of_curves_is_taken_at_each_evaluation():
    # Evaluation 1: 0 0 0 4 -> 0. Evaluation 2: 0 2 4 9 -> (2 + 4) / 2.
    curves = [np.array([[0.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 9.0], [0.0, 2.0]])]
    np.testing.assert_allclose(iqm_curve(curves), [0.0, 3.0])


@pytest.mark.parametrize("statistic", [mean, iqm])
def test_intervals_of_95_percent_cover_the_truth_about_so_often(statistic):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(
            rng.normal(size=(3, 10)), statistic, repetitions=200, seed=rng
        )
        covered += low <= 0 <= high
    assert 180 <= covered <= 196


def test_seeds_are_resampled_within_their_task():
    # Task 0 is always 0, task 1 is 10 or 12. Within tasks, the mean of all four runs lies
    # between (0 + 0 + 10 + 10) / 4 = 5 and (0 + 0 + 12 + 12) / 4 = 6, each with probability 1/4.
    # Drawn from all four runs alike, it would reach from 0 to 12.
    scores = np.array([[0.0, 0.0], [10.0, 12.0]])
    assert bootstrap_interval(scores, mean) == (5.0, 6.0)


def test_runs_without_spread_have_an_interval_without_width_and_single_runs_have_none():
    assert bootstrap_interval([[3.0, 3.0, 3.0]], iqm) == (3.0, 3.0)
    assert np.isnan(bootstrap_interval([np.array([3.0]), np.array([1.0, 2.0])], iqm)).all()
    assert estimate([3.0]).value == 3.0


def test_intervals_depend_on_their_seed_and_on_no_other_generator():
    scores = np.random.default_rng(1).normal(size=(2, 7))
    np.random.seed(0)  # noqa: NPY002  (the global one, which must not matter)
    first = bootstrap_interval(scores, iqm, repetitions=50, seed=4)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert bootstrap_interval(scores, iqm, repetitions=50, seed=4) == first
    assert bootstrap_interval(scores, iqm, repetitions=50, seed=5) != first
    np.random.seed(0)  # noqa: NPY002
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_more_confidence_makes_wider_intervals():
    scores = np.random.default_rng(1).normal(size=(1, 20))
    low, high = bootstrap_interval(scores, mean, confidence=0.5)
    lower, higher = bootstrap_interval(scores, mean, confidence=0.99)
    assert lower < low < high < higher


def test_a_band_is_the_interval_at_each_evaluation():
    curves = np.random.default_rng(0).normal(size=(2, 6, 3)).cumsum(axis=2)
    low, high = bootstrap_band(curves, repetitions=100, seed=3)
    for number in range(3):
        expected = bootstrap_interval(curves[:, :, number], iqm, repetitions=100, seed=3)
        assert (low[number], high[number]) == pytest.approx(expected)


def test_the_probability_of_improvement_counts_pairs_and_half_of_ties():
    # 3 beats 1, 2 and ties 3; 2 beats 1, ties 2, loses to 3: (2.5 + 1.5) / 6.
    found = probability_of_improvement([3.0, 2.0], [1.0, 2.0, 3.0])
    assert found.value == pytest.approx(4 / 6)
    # U of scipy over n m.
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 9).astype(float), rng.integers(0, 5, 7).astype(float)
    u = scipy.stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement(x, y).value == pytest.approx(u / 63)


def test_the_probability_of_improvement_gives_tasks_equal_weights():
    # Task 0: both runs win, 1. Task 1: of 4 runs one ties, 1/8. Mean 9/16.
    x = [np.array([5.0, 5.0]), np.array([0.0, 0.0, 0.0, 1.0])]
    y = [np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0])]
    found = probability_of_improvement(x, y)
    assert found.value == pytest.approx(9 / 16)
    assert 0.5 <= found.low < found.value < found.high <= 1


def test_equal_and_separate_methods_are_told_apart_by_the_interval():
    x = np.arange(10.0)
    same = probability_of_improvement(x, x)
    assert same.value == 0.5
    assert same.low < 0.5 < same.high
    better = probability_of_improvement(x + 100, x)
    assert (better.value, better.low, better.high) == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="2 and 1 tasks"):
        probability_of_improvement([x, x], [x])


def test_a_profile_counts_runs_with_the_score_or_more():
    # Of 0, 1, 1 and 2: all have 0, three 1, one 1.5 and 2, none 3.
    found = performance_profile([[0.0, 1.0], [1.0, 2.0]], np.array([0.0, 1.0, 1.5, 2.0, 3.0]))
    np.testing.assert_allclose(found.share, [1, 0.75, 0.25, 0.25, 0])
    # Task 0 has 0 or 1, task 1 has 1 or 2: at 1, from none and both to both and both.
    np.testing.assert_allclose(found.low, [1, 0.5, 0, 0, 0])
    np.testing.assert_allclose(found.high, [1, 1, 0.5, 0.5, 0])


def test_runs_that_never_get_there_are_censored():
    curves = np.array([[1.0, 1.0, 3.0], [5.0, 5.0, 5.0], [0.0, 2.0, 2.5]])
    np.testing.assert_array_equal(evaluations_to_reach(curves, 3.0), [3, 1, np.inf])
    np.testing.assert_array_equal(evaluations_to_reach(curves, np.array([1, 9, 2])), [1, np.inf, 2])
    assert np.median(evaluations_to_reach(curves[[0, 2]], 3.0)) == np.inf  # more than the budget


def test_regret_is_the_mean_distance_to_the_best_of_each_task():
    # Task 0: 10 - 9 and 10 - 7; task 1: 2 - 2 and 2 - 4, better than the best known.
    found = mean_regret([[9.0, 7.0], [2.0, 4.0]], [10.0, 2.0])
    assert found.value == pytest.approx((1 + 3 + 0 - 2) / 4)
    assert (found.low, found.high) == (-0.5, 1.5)  # (1 + 1 - 2 - 2) / 4 and (3 + 3 + 0 + 0) / 4
    with pytest.raises(InputError, match="2 tasks need a best score each"):
        mean_regret([[9.0, 7.0], [2.0, 4.0]], [10.0])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "no scores"),
        ([np.array([])], "task 0 has no runs"),
        ([np.array([1.0]), np.array([np.nan])], "task 1 has a score that is not a finite"),
        ([1.0, np.inf], "not a finite"),
        (["a", "b"], "array of numbers"),
        (np.zeros((2, 3, 4)), r"\[seeds\], not 2 axes"),
    ],
)
def test_scores_that_are_none_are_refused(scores, message):
    for function in (iqm, estimate, lambda s: probability_of_improvement(s, s)):
        with pytest.raises(InputError, match=message):
            function(scores)


def test_curves_must_have_equal_lengths():
    for ragged in ([[1.0, 2.0], [1.0]], [np.zeros((2, 3)), np.zeros((2, 4))]):
        for function in (iqm_curve, bootstrap_band):
            with pytest.raises(InputError, match="as many evaluations"):
                function(ragged)
    with pytest.raises(InputError, match="as many evaluations"):
        evaluations_to_reach([[1.0, 2.0], [1.0]], 1.0)


@pytest.mark.parametrize("settings", [{"confidence": 1.0}, {"repetitions": 0}])
def test_a_bootstrap_without_sense_is_refused(settings):
    with pytest.raises(InputError, match=f"{next(iter(settings))} must"):
        bootstrap_interval([1.0, 2.0], mean, **settings)
