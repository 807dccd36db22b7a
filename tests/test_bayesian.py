"""Bayesian optimisation learns from what was measured, quietly, and says what it needs."""

from __future__ import annotations

import logging
import sys
import warnings

import numpy as np
import optuna
import pytest

from haq_env.agents.methods import search_method
from haq_env.errors import InputError
from haq_env.evaluation import Evaluation
from haq_env.make import make_task
from haq_env.search import SEARCH, check_needs
from haq_env.search.bayesian import INITIAL


class Additive:
    """A cheap evaluator: the loss is a sum over the sides of layers of s x 4^-bits."""

    float_accuracy = 100.0

    def __init__(self, seed: int = 0) -> None:
        self.evaluations = 0
        self._weights = np.random.default_rng(seed).lognormal(sigma=1.5, size=(28, 2))
        self._weights[[0, -1]] = 0.0  # pinned
        self._scale = self._weights.sum() * 4.0**-4

    def evaluate(self, bits):
        self.evaluations += 1
        lost = (self._weights * 4.0 ** -bits.astype(float)).sum() / self._scale
        return Evaluation(float(100 * np.exp(-0.1 * lost)))


def toy(seed=0, **settings):
    settings = {"hardware": "bismo-edge", "budget": "w4a4", **settings}
    return make_task(evaluator=Additive(seed), **settings)


def search(task, evaluations, seed=0):
    return SEARCH["bayesian"](task, evaluations, seed)


@pytest.fixture(scope="module")
def found():
    return search(toy(), 100)


def test_it_beats_random_and_uniform_policies_at_equal_evaluations(found):
    random = SEARCH["random"](toy(), 100, 0)
    assert found.best.accuracy > random.best.accuracy + 2
    assert found.best.accuracy > found[0].accuracy + 2


def test_the_model_goes_on_learning_after_the_random_policies(found):
    accuracy = np.array([trial.accuracy for trial in found])
    assert accuracy[-40:].mean() > accuracy[1:INITIAL].mean() + 20
    assert accuracy[INITIAL:].max() > accuracy[:INITIAL].max()


def test_it_draws_its_first_policies_like_the_random_search(found):
    random = SEARCH["random"](toy(), 100, 0)
    assert [t.w_bits for t in found[:INITIAL]] == [t.w_bits for t in random[:INITIAL]]
    assert found[INITIAL].requested_w_bits != random[INITIAL].requested_w_bits


def test_the_model_is_told_the_uniform_policy_first_and_only_what_was_measured(monkeypatch):
    told = []
    add_trial = optuna.Study.add_trial

    def spy(study, trial):
        told.append(trial)
        add_trial(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", spy)
    task = toy()
    history = search(task, 30)
    assert any((t.w_bits, t.a_bits) != (t.requested_w_bits, t.requested_a_bits) for t in history)
    assert len(told) == len(history)
    for one, trial in zip(told, history, strict=True):
        assert one.value == trial.accuracy
        expected = {f"{layer}.{side}": trial.bits[layer, side] for layer, side in task.space.steps}
        assert one.params == expected


def test_it_asks_only_for_the_widths_that_are_open():
    task = toy(quantizer="kmeans", hardware="size", budget=0.5, bits=(3, 6))
    low, high = task.space.bits
    for trial in search(task, 30)[10:]:
        assert set(trial.requested_w_bits[1:-1]) <= {str(b) for b in range(low, high + 1)}
        assert trial.requested_w_bits[0] == trial.requested_w_bits[-1] == "8"
        assert set(trial.requested_a_bits) == {"8"}  # k-means leaves activations alone


def test_optuna_says_nothing_and_its_settings_stay_as_the_user_left_them(capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    filters, level = list(warnings.filters), logging.getLogger().level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(toy(), 12)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert (list(warnings.filters), logging.getLogger().level) == (filters, level)
    assert capfd.readouterr() == ("", "")


def test_without_optuna_one_line_says_what_to_install_before_anything_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    task = toy()
    with pytest.raises(InputError) as caught:
        search(task, 10)
    assert 'pip install optuna (or -e ".[bayes]")' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert task.evaluator.evaluations == 0
    for found_out in (search_method, check_needs):
        with pytest.raises(InputError, match="needs Optuna"):
            found_out("bayesian")
        found_out("evolution")
