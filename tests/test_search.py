"""Search methods spend what they are given, stay inside the budget, and write down everything."""

import csv
import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

from haq_env.agents.run import search_with_agent
from haq_env.data import Dataset, Split
from haq_env.env import QuantizationEnv
from haq_env.errors import InputError
from haq_env.evaluation import Evaluation
from haq_env.make import make_task
from haq_env.search import SEARCH
from haq_env.search.history import History, Trial, begin, measure
from haq_env.search.mutation import mutate
from haq_env.search.run import search_with_baseline


class Additive:
    """A cheap evaluator: every layer loses accuracy by its importance and its bits."""

    float_accuracy = 100.0

    def __init__(self, seed: int = 0) -> None:
        self.evaluations = 0
        self._importance = np.random.default_rng(seed).lognormal(sigma=1.5, size=(28, 2))

    def evaluate(self, bits):
        self.evaluations += 1
        lost = (self._importance * 2.0 ** -bits.astype(float)).sum()
        return Evaluation(float(100 - lost))


def toy(seed=0, **settings):
    settings = {"hardware": "bismo-edge", "budget": 0.4, **settings}
    return make_task(evaluator=Additive(seed), **settings)


class Batching(Additive):
    """The same, with a way for several policies at once."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def evaluate_each(self, policies):
        self.batches.append(len(policies))
        return (self.evaluate(bits) for bits in policies)


def policies(history):
    return [(trial.w_bits, trial.a_bits) for trial in history]


METHODS = list(SEARCH)
DRAWING = [name for name in METHODS if name != "uniform"]


def network() -> nn.Module:
    """Five layers with fixed weights that nobody has trained."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * 16, 3),
        )  # fmt: skip


def images() -> Dataset:
    rng = np.random.default_rng(0)
    part = Split(rng.integers(0, 256, (40, 1, 6, 6), dtype=np.uint8), rng.integers(0, 3, 40))
    return Dataset("noise", 3, (0.5,), (0.3,), part, part, part)


@pytest.mark.parametrize("name", ["random", "ilp-law"])
def test_what_needs_no_answers_is_asked_for_in_batches(name):
    evaluator = Batching()
    task = make_task(hardware="bismo-edge", budget=0.4, evaluator=evaluator)
    history = SEARCH[name](task, 70, 0)
    assert evaluator.batches == [32, 32, 5]  # the uniform policy comes first, alone
    assert policies(history) == policies(SEARCH[name](toy(), 70, 0))


def needs_a_network(name):
    try:
        SEARCH[name](toy(), 1, 0)
    except InputError as error:
        return "needs a network" in str(error)
    return False


def problem(name, **settings):
    """The toy, or a tiny network for a method that looks into the network."""
    if needs_a_network(name):
        settings = {"hardware": "bismo-edge", "budget": "w4a4", **settings}
        return make_task(network(), images(), evaluator="ptq_bn", **settings)
    return toy(**settings)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another
    yield
    torch.set_num_threads(threads)


# -- methods -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("evaluations", [1, 2, 7, 30])
def test_a_method_spends_exactly_the_evaluations_it_is_given(name, evaluations):
    task = problem(name)
    history = SEARCH[name](task, evaluations, seed=0)
    assert len(history) == task.evaluator.evaluations
    assert len(history) <= evaluations
    if name != "uniform" or evaluations <= 7:  # there are only so many uniform policies
        assert len(history) == evaluations


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("evaluations", [0, -3])
def test_a_method_refuses_to_search_without_evaluations(name, evaluations):
    task = problem(name)
    with pytest.raises(InputError, match="evaluations must be 1 or more"):
        SEARCH[name](task, evaluations, seed=0)
    assert task.evaluator.evaluations == 0


@pytest.mark.parametrize("budget", [0.7, 0.8, "w3a2"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_starts_with_the_uniform_policy_itself(name, budget):
    task = problem(name, budget=budget)
    first = SEARCH[name](task, 1, seed=1)[0]
    assert (first.bits == task.uniform()).all()
    assert len(set(first.w_bits[1:-1])) == len(set(first.a_bits[1:-1])) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hardware": "bitfusion", "metric": "energy", "budget": "w2a8"},
        {"hardware": "size", "quantizer": "kmeans", "bits": (1, 8), "budget": "w3a8"},
        {"hardware": "bismo-cloud", "fill_up": False, "budget": "w4a4"},
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_all_policies_are_inside_the_budget_and_the_space(name, settings):
    task = problem(name, **settings)
    history = SEARCH[name](task, 15, seed=2)
    assert (history[0].bits == task.uniform()).all()
    for trial in history:
        assert task.budget.fits(trial.bits)
        assert (task.space.clip(trial.bits) == trial.bits).all()
        assert trial.cost == task.cost(trial.bits)
        assert trial.cost_ratio == trial.cost / task.budget.reference


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_search_and_touches_no_global_generator(name):
    def search():
        history = SEARCH[name](problem(name), 20, seed=3)
        return [dataclasses.replace(trial, seconds=0.0) for trial in history]

    def states():
        generators = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        return generators[0][1].tobytes(), generators[0][2], generators[1].numpy().tobytes()

    with torch.random.fork_rng(devices=[]):
        before = states()
        first = search()
        assert states() == before
        np.random.random(7)  # noqa: NPY002  # the global generator is what is asked about
        torch.rand(7)
        assert search() == first


@pytest.mark.parametrize("name", DRAWING)
def test_another_seed_gives_another_search(name):
    first, second = (policies(SEARCH[name](problem(name), 10, seed)) for seed in (0, 1))
    assert first[0] == second[0]
    assert first[1:] != second[1:]


@pytest.mark.parametrize(
    "settings", [{}, {"quantizer": "kmeans", "hardware": "size", "budget": 0.7}]
)
def test_the_uniform_search_tries_every_uniform_policy_that_fits_once(settings):
    task = toy(**settings)
    history = SEARCH["uniform"](task, 64, seed=0)
    low, high = task.space.bits
    fitting = {
        task.space.uniform(w, a).tobytes()
        for w in range(low, high + 1)
        for a in range(low, high + 1)
        if task.budget.fits(task.space.uniform(w, a))
    }
    assert len(history) == len(fitting) > 1
    assert {trial.bits.tobytes() for trial in history} == fitting
    costs = [trial.cost for trial in history[1:]]
    assert costs == sorted(costs, reverse=True)


COMPARED = ("random", "annealing", "evolution")


def test_evolution_and_annealing_beat_random_policies_at_equal_evaluations():
    for seed in range(5):
        best = {name: SEARCH[name](toy(seed), 200, seed).best.accuracy for name in COMPARED}
        assert best["evolution"] > best["random"], (seed, best)
        assert best["annealing"] > best["random"], (seed, best)


def test_a_mutation_stays_in_the_space_and_leaves_its_parent_alone():
    task = toy()
    rng = np.random.default_rng(0)
    parent = task.uniform()
    kept = parent.copy()
    changed = []
    for _ in range(300):
        child = mutate(task, parent, rng)
        assert (task.space.clip(child) == child).all()
        assert np.abs(child - parent).max() <= 2
        changed.append((child != parent).any(axis=1))
    assert (parent == kept).all()
    searched = np.unique([step.layer for step in task.space.steps])
    assert (np.flatnonzero(np.any(changed, axis=0)) == searched).all()


# -- history -----------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    """A CSV file with six trials, and the trials."""
    path = tmp_path / "episodes.csv"
    task = toy()
    history = History(path)
    rng = np.random.default_rng(0)
    for policy in task.space.random(rng, 6):
        measure(task, policy, history)
    return path, list(history)


def test_every_trial_is_in_the_file_before_the_next_one_begins(tmp_path):
    path, task = tmp_path / "episodes.csv", toy()
    history = History(path)
    for count in range(1, 4):
        measure(task, task.space.lowest, history)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["evaluation"]) for row in rows] == list(range(count))
    assert list(rows[0]) == ["evaluation", *(each.name for each in dataclasses.fields(Trial))]


def test_what_was_measured_comes_back_bit_for_bit(log):
    path, trials = log
    before = path.read_bytes()
    read = History.load(path)
    assert list(read) == trials
    assert path.read_bytes() == before
    assert (read[3].bits == trials[3].bits).all()
    assert any(trial.w_bits != trial.requested_w_bits for trial in read)


def test_what_comes_after_the_kept_trials_is_forgotten_in_the_file_too(log):
    path, trials = log
    before = path.read_bytes()
    kept = History.load(path, keep=4)
    assert list(kept) == trials[:4]
    assert before.startswith(path.read_bytes())
    for trial in trials[4:]:
        kept.add(trial)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_keeping_nothing_begins_a_new_file(log):
    path, trials = log
    history = History.load(path, keep=0)
    assert len(history) == 0
    for trial in trials[:2]:
        history.add(trial)
    assert list(History.load(path)) == trials[:2]


def test_a_row_that_was_cut_off_while_it_was_written_does_no_harm_when_it_is_not_kept(log):
    path, trials = log
    whole = path.read_bytes()
    start = whole.rstrip().rindex(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        kept = History.load(path, keep=5)
        assert list(kept) == trials[:5]
        kept.add(trials[5])
        assert path.read_bytes() == whole


def test_a_log_from_before_there_were_estimates_is_read_and_goes_on(log):
    path, trials = log
    with path.open(newline="") as file:
        rows = [row[:-2] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    history = History.load(path)
    assert list(history) == trials
    history.add(trials[0])
    assert list(History.read(path)) == [*trials, trials[0]]


def test_an_estimate_is_told_from_a_measurement_in_the_log(tmp_path):
    task = make_task(budget=1.0, evaluator="ptq_bn", early_stopping=0.05)
    history = History(tmp_path / "episodes.csv")
    measure(task, task.space.uniform(8, 8), history, project=False)
    measure(task, task.space.uniform(2, 2), history, project=False)
    assert [trial.stopped_early for trial in history] == [False, True]
    assert list(History.read(tmp_path / "episodes.csv")) == list(history)


def test_a_file_with_fewer_trials_than_were_expected_is_refused_and_left_alone(log):
    path, _ = log
    before = path.read_bytes()
    with pytest.raises(InputError, match="has 6 evaluations; 7 were expected"):
        History.load(path, keep=7)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("evaluation", "4"),
        ("evaluation", ""),
        ("w_bits", "83"),
        ("w_bits", "9" * 28),
        ("a_bits", "8x" * 14),
        ("requested_a_bits", ""),
        ("accuracy", "high"),
        ("accuracy", "nan"),
        ("cost", ""),
        ("cost_ratio", "inf"),
        ("cache_hit", "maybe"),
        ("stopped_early", ""),
    ],
)
def test_a_damaged_row_is_named_and_the_file_left_alone(log, column, value):
    path, _ = log
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[3][column] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    before = path.read_bytes()
    with pytest.raises(InputError, match=re.escape(f"{path}: row 3 is damaged")):
        History.load(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], r"row \d is damaged"),
        (lambda whole: whole.replace(b"accuracy", b"precision"), "row 0 is damaged"),
        (lambda whole: whole[:300] + b"\xff\xfe" + whole[300:], "is damaged"),
        (lambda whole: b"\n".join([*whole.split(b"\n")[:3], *whole.split(b"\n")[4:]]), "row 2 is"),
    ],
)
def test_a_damaged_file_is_one_clear_error(log, damage, message):
    path, _ = log
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        History.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        History.load(tmp_path / "gone.csv")


def test_the_best_trial_is_the_first_of_the_highest_accuracy(log):
    _, (trial, *_) = log
    history = History()
    for number, accuracy in enumerate((10.0, 99.0, 50.0, 99.0)):
        history.add(dataclasses.replace(trial, accuracy=accuracy, seconds=float(number)))
    assert history.best is history[1]
    assert history.best_so_far() == [10.0, 99.0, 99.0, 99.0]


def plain(task, evaluations, seed):
    """A method as anybody can write it, which takes no history."""
    rng = np.random.default_rng(seed)
    history = begin(task, evaluations)
    while len(history) < evaluations:
        measure(task, task.space.random(rng, 1)[0], history)
    return history


def watched(task, evaluations, seed, history=None):
    """One that measures inside of another search, and can be watched."""
    history = begin(task, evaluations, history)
    inner = plain(task, evaluations - 1, seed)
    for trial in inner[1:]:
        measure(task, trial.bits, history)
    return history


@pytest.mark.parametrize(("method", "kept"), [(plain, 0), (watched, 1)])
def test_a_method_of_ones_own_is_written_down(method, kept, tmp_path, monkeypatch):
    monkeypatch.setitem(SEARCH._entries, "own", method)
    folder, lengths = tmp_path / "not" / "there", []

    def progress(history):
        lengths.append(len(history))

    found = search_with_baseline(toy(), "own", 5, 0, folder=str(folder), progress=progress)
    assert lengths == list(range(1, len(found) + 1))
    assert policies(History.read(folder / "episodes.csv")) == policies(found)
    assert policies(found) == policies(method(toy(), 5, 0))

    class Stopped(Additive):
        def evaluate(self, bits):
            if self.evaluations == 1:
                raise KeyboardInterrupt
            return super().evaluate(bits)

    task = make_task(evaluator=Stopped(), hardware="bismo-edge", budget=0.4)
    found = search_with_baseline(task, "own", 5, 0, folder=folder)
    assert found.interrupted
    assert len(found) == kept


@pytest.mark.parametrize(
    "search",
    [
        lambda task, folder: search_with_baseline(task, "random", 3, 0, folder=folder),
        lambda task, folder: search_with_agent(QuantizationEnv(task), "ddpg", 3, 0, folder=folder),
    ],
    ids=["baseline", "agent"],
)
def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(search, tmp_path):
    (tmp_path / "file").write_text("kept")
    task, folder = toy(), tmp_path / "file" / "run"
    with pytest.raises(InputError, match="cannot make the folder"):
        search(task, folder=folder)
    assert task.evaluator.evaluations == 0


def test_an_agents_folder_is_made_and_may_be_a_string(tmp_path):
    folder = tmp_path / "not" / "there"
    history = search_with_agent(QuantizationEnv(toy()), "ppo", 2, 0, folder=str(folder))
    assert policies(History.read(folder / "episodes.csv")) == policies(history)


def test_a_history_is_indexed_like_a_list(log):
    _, trials = log
    history = History()
    for trial in trials:
        history.add(trial)
    assert history[-1] == trials[-1]
    assert history[1:3] == trials[1:3]


def test_a_search_that_is_refused_throws_no_log_away(tmp_path):
    task = toy()
    search_with_baseline(task, "evolution", 6, 0, folder=tmp_path)
    kept = (tmp_path / "episodes.csv").read_bytes()
    for method, evaluations in (("random", 0), ("ilp-fit", 6)):
        with pytest.raises(InputError):
            search_with_baseline(task, method, evaluations, 0, folder=tmp_path)
        assert (tmp_path / "episodes.csv").read_bytes() == kept
    search_with_baseline(task, "random", 4, 0, folder=tmp_path)
    assert len(History.read(tmp_path / "episodes.csv")) == 4
