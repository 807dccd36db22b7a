"""Tracks on images that are not in the package: nothing is measured on others than theirs."""

import pickle
import re
import shutil

import numpy as np
import pytest
from verified_runs import made

from haq_env.data import load_dataset
from haq_env.data.cifar import CLASSES
from haq_env.data.store import cache_folder
from haq_env.errors import InputError
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.leaderboard.judge import Question, measure_all
from haq_env.leaderboard.protocol import CIFAR10, TRACKS, Cell, Track, find_track
from haq_env.leaderboard.running import run_cell
from haq_env.leaderboard.standings import Standings
from haq_env.leaderboard.suites import by_suite
from haq_env.leaderboard.sweep import cells_of
from haq_env.leaderboard.table import markdown
from haq_env.quantization.integer import IntegerProgram, Unsupported

NAMES = tuple(name for name, track in TRACKS.items() if track.suite == CIFAR10)
EDGE = "cifar10-bismo-edge-w4a2"
OTHERS = "is about the original images of cifar10, and those in "


@pytest.fixture
def other_images(tmp_path, monkeypatch):
    """A cache folder with images of CIFAR-10's shape and size that are not CIFAR-10's."""
    home = tmp_path / "cifar10" / "cifar-10-batches-bin"
    home.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (1_500, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(1_500) % len(CLASSES)
        records.tofile(home / f"{name}.bin")
    monkeypatch.setenv("HAQ_ENV_DATA", str(tmp_path))
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_a_run_and_a_verification_on_other_images_are_refused(other_images, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a policy was measured")

    monkeypatch.setattr(TrainedEvaluator, "evaluate", never)
    with pytest.raises(InputError, match=re.escape(f"track {EDGE} {OTHERS}")):
        run_cell(find_track(EDGE), Cell(EDGE, "random", 0, 2), other_images / "runs")
    question = Question(EDGE, "4" * 28, "2" * 28, fresh=False)
    with pytest.raises(InputError, match=OTHERS):
        list(measure_all([question], None, 1))


def test_a_machine_without_integer_kernels_is_told_so(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise Unsupported("no kernels here")

    track = Track("integers", {"evaluator": "ptq_bn", "inference": "int8"})
    cell = Cell("integers", "random", 0, 1)
    assert run_cell(track, cell, tmp_path).evaluations == 1
    monkeypatch.setattr(IntegerProgram, "of", none)
    complaint = "track integers is about accuracies on integer kernels, .* no kernels here"
    with pytest.raises(InputError, match=complaint), pytest.warns(RuntimeWarning):
        run_cell(track, cell, tmp_path)


def test_costs_budgets_and_tables_need_no_images(tmp_path, monkeypatch):
    monkeypatch.setenv("HAQ_ENV_DATA", str(tmp_path / "nothing"))
    for name in NAMES:
        task = find_track(name).task()
        assert task.budget.fits(task.uniform())
    submission = made(("random", "ilp-fit"), tracks=NAMES, seeds=2, budget=50)
    (suite,) = by_suite([submission])
    text = markdown([submission], Standings([submission]))
    assert suite == CIFAR10
    assert "# Leaderboard: cifar10" in text
    assert "| 10 evaluations | 50 evaluations |" in text
    assert not (tmp_path / "nothing").exists()


def test_a_track_reaches_another_process_with_its_images():
    for name in NAMES:
        copy = pickle.loads(pickle.dumps(find_track(name)))
        assert (copy, copy.images, copy.suite) == (TRACKS[name], TRACKS[name].images, CIFAR10)


def test_runs_are_as_long_as_the_suite_judges_them():
    assert {cell.evaluations for cell in cells_of(NAMES, ("random",), (0,))} == {200}
    with pytest.raises(InputError, match="learns on another track first"):
        cells_of(NAMES, ("transfer-ppo",), (0,))


@pytest.mark.slow
def test_the_original_images_give_the_tracks_network_its_published_accuracy():
    folder = cache_folder() / "cifar10"
    if not any(folder.glob("cifar-10-batches-*/test_batch*")):
        pytest.skip(f"CIFAR-10's original files are not in {folder}")
    assert load_dataset("cifar10").about["files"] == ["original pixels"]
    find_track(EDGE).check_images()
    assert find_track(EDGE).task().float_accuracy == pytest.approx(87.84, abs=0.1)
