"""Training in pieces: a kill loses one epoch at most, and the end is the same to the bit."""

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_network
from safetensors.torch import load_file
from scripts import run_main
from torch import nn

from haq_env import search_policy
from haq_env.cli import main
from haq_env.commands.train import Train
from haq_env.data import Dataset, Split, load_dataset
from haq_env.errors import InputError, OccupiedError
from haq_env.make import make_task
from haq_env.networks import bundled, load_network
from haq_env.networks.checkpoint import read_metadata, save_tensors
from haq_env.training.augment import augment
from haq_env.training.resumable import train_in_pieces
from haq_env.training.settings import Training
from haq_env.training.trainer import Trainer

CARDS = sorted(bundled.WEIGHTS.glob("*.json"))
DIGITS = {"width": 0.125, "image_size": 16}
BRIEF = Training(epochs=3, batch_size=64, augmentation="crop", ema=0.9, label_smoothing=0.1)
SETTINGS = [
    *("train", "mobilenet_v2", "--dataset", "digits", "--width", "0.125", "--image-size", "16"),
    *("--epochs", "3", "--batch-size", "64", "--augmentation", "crop", "--ema", "0.9"),
    *("--label-smoothing", "0.1", "--device", "cpu", "--threads", "1"),
]


def brief(out: Path, training: Training = BRIEF, **options):
    # MobileNet-V2 has dropout, whose chance must be carried over too
    return train_in_pieces("mobilenet_v2", "digits", out, training, **DIGITS, **options)


def images(count: int, channels: int) -> Dataset:
    part = Split(np.zeros((count, channels, 8, 8), dtype=np.uint8), np.arange(count) % 10)
    return Dataset("mine", 10, (0.5,) * channels, (0.25,) * channels, part, part, part)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "v2.safetensors"
    assert brief(out, command="the command")
    return out


def same_curves(one: Path, other: Path) -> bool:
    rows = [
        [{**row, "seconds": ""} for row in csv.DictReader(path.with_suffix(".csv").open())]
        for path in (one, other)
    ]
    return rows[0] == rows[1]


def same_bits(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


# -- stopping and going on ---------------------------------------------------------------------


def test_a_training_in_pieces_ends_in_the_bits_of_an_unbroken_one(unbroken, tmp_path):
    out = tmp_path / "v2.safetensors"
    assert brief(out, minutes=0) is None
    assert brief(out, minutes=0) is None
    assert brief(out)
    assert same_bits(out, unbroken)
    assert same_curves(out, unbroken)


def test_a_training_goes_on_with_the_images_it_began_with_only(tmp_path):
    def noise(seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (32, 1, 16, 16), dtype=np.uint8)
        split = Split(images, np.arange(32) % 4)
        return Dataset("mine", 4, (0.5,), (0.25,), split, split, split)

    out = tmp_path / "mine.safetensors"
    recipe = Training(epochs=2, batch_size=16, augmentation="none")
    start = ("mobilenet_v1", noise(0), out, recipe)
    assert train_in_pieces(*start, width=0.125, minutes=0) is None
    with pytest.raises(InputError, match="of a training with digest"):
        train_in_pieces("mobilenet_v1", noise(1), out, recipe, width=0.125)
    assert train_in_pieces(*start, width=0.125)
    with pytest.raises(InputError, match="of a training with digest"):
        train_in_pieces("mobilenet_v1", noise(1), out, recipe, width=0.125)


@pytest.mark.slow
def test_a_killed_training_goes_on_where_it_was(unbroken, tmp_path):
    out = tmp_path / "v2.safetensors"
    argv = [*SETTINGS, "--out", str(out)]
    command = [sys.executable, "-m", "haq_env", *argv]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not out.with_suffix(".state").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = run_main(main, *argv)
    assert done.returncode == 0, done.stderr
    assert "0 of 3 epochs are done" not in done.stdout
    assert same_bits(out, unbroken)
    again = run_main(main, *argv)
    assert "epoch" not in again.stdout
    assert "Written" in again.stdout


def test_other_settings_do_not_go_on_in_the_same_files(tmp_path, unbroken):
    out = tmp_path / "v2.safetensors"
    brief(out, minutes=0)
    with pytest.raises(OccupiedError, match="is of a training with epochs = 3, and now it is 4"):
        brief(out, replace(BRIEF, epochs=4))
    with pytest.raises(OccupiedError, match="with precision = auto, and now it is bfloat16"):
        brief(out, precision="bfloat16")
    with pytest.raises(OccupiedError, match="with precision = auto, and now it is bfloat16"):
        brief(unbroken, precision="bfloat16")
    with pytest.raises(OccupiedError, match=r"v2\.safetensors is of a training with seed = 0, and"):
        brief(unbroken, replace(BRIEF, seed=1))
    out.with_suffix(".state").write_bytes(b"nothing that was saved")
    with pytest.raises(InputError, match=r"v2\.state is no state of a training, or damaged"):
        brief(out)


def test_a_state_says_what_it_is_of_in_the_words_of_earlier_versions(tmp_path):
    # other names or settings here, and trainings that are under way could not go on
    out = tmp_path / "v2.safetensors"
    brief(out, minutes=0)
    state = torch.load(out.with_suffix(".state"), weights_only=True)
    assert sorted(state) == ["average", "module", "optimizer", "rows", "settings"]
    assert json.loads(state["settings"]) == {
        "network": "mobilenet_v2",
        "dataset": "digits",
        "dataset_options": {"size": 16},
        "build": {"classes": 10, "image_size": 16, "width": 0.125, "in_channels": 1},
        "images": {"source": "scikit-learn"},
        "training": {
            "epochs": 3,
            "batch_size": 64,
            "learning_rate": 0.1,
            "schedule": "cosine",
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "label_smoothing": 0.1,
            "ema": 0.9,
            "augmentation": "crop",
            "seed": 0,
        },
        "precision": "auto",
    }
    earlier = json.loads(state["settings"])
    del earlier["precision"]
    torch.save({**state, "settings": json.dumps(earlier)}, out.with_suffix(".state"))
    brief(out, minutes=0)
    assert len(torch.load(out.with_suffix(".state"), weights_only=True)["rows"]) == 2


# -- what is written ---------------------------------------------------------------------------


def test_the_card_says_how_the_weights_were_made_and_what_they_are_worth(unbroken):
    card = json.loads(unbroken.with_suffix(".json").read_text())
    assert card["training"]["epochs"] == 3
    assert card["command"] == "the command"
    assert card["seconds"] > 0
    assert card["devices"] == ["cpu, 1 threads, float32"]
    assert "torch" in card["versions"]
    rows = list(csv.DictReader(unbroken.with_suffix(".csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert card["half"]["val_float32"] == pytest.approx(float(rows[-1]["val"]), abs=1e-3)
    assert not unbroken.with_suffix(".state").exists()
    task = make_task("mobilenet_v2", "digits", checkpoint=unbroken)
    assert task.float_accuracy == pytest.approx(card["accuracy"]["val"])


def test_weights_are_stored_in_half_only_if_the_accuracy_stays():
    data = load_dataset("digits")
    module = load_network("mobilenet_v1", classes=10, image_size=16, width=0.125, in_channels=1)
    trainer = Trainer(module, data, Training(batch_size=64), torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fits, _, _ = trainer.round_to_half(tolerance=-1)  # no loss is small enough
    assert not fits
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)
    fits, wide, narrow = trainer.round_to_half(tolerance=100)
    assert fits
    assert narrow >= wide - 100
    weight = module.state_dict()["classifier.weight"]
    assert torch.equal(weight, weight.half().float())
    assert not torch.equal(weight, before["classifier.weight"])


def test_a_file_dropped_among_the_bundled_ones_works_by_name(unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "WEIGHTS", tmp_path)
    with pytest.raises(InputError, match="`haq-env train resnet20 --dataset cifar10 --out"):
        make_task("resnet20", "cifar10")
    out = tmp_path / "mobilenet_v1_050_tiny.safetensors"
    rng = np.random.default_rng(0)
    part = Split(rng.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8), np.arange(64) % 10)
    tiny = Dataset("tiny", 10, (0.5,) * 3, (0.25,) * 3, part, part, part)
    training = Training(epochs=1, batch_size=32)
    assert train_in_pieces("mobilenet_v1", tiny, out, training, width=0.5)
    task = make_task("mobilenet_v1_050", tiny)
    assert task.layers.network == "mobilenet_v1_050"
    assert task.layers[0].out_channels == 16
    assert 0 <= task.float_accuracy <= 100
    shutil.copy(out, tmp_path / "mobilenet_v1_tiny.safetensors")
    with pytest.raises(InputError, match="holds weights of 'mobilenet_v1_050'"):
        make_task("mobilenet_v1", tiny)


def test_weights_are_not_measured_on_images_that_they_have_learned(tmp_path):
    rng = np.random.default_rng(0)
    part = Split(rng.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8), np.arange(64) % 2)
    about = {
        "seed": 0,
        "counts": {"train": 64, "val": 64, "test": 64},
        "sha256": {"val": "a"},
        "classes": ["cat", "dog"],
    }
    tiny = Dataset("tiny", 2, (0.5,) * 3, (0.25,) * 3, part, part, part, about)
    out = tmp_path / "tiny.safetensors"
    assert train_in_pieces("mobilenet_v1", tiny, out, Training(epochs=1, batch_size=32), width=0.25)

    def accuracy(**changed):
        data = replace(tiny, about={**about, **changed})
        return make_task("mobilenet_v1", data, checkpoint=out).float_accuracy

    assert 0 <= accuracy() <= 100
    with pytest.raises(InputError, match=r"another split of data set 'tiny' \(seed 0, now 1\)"):
        accuracy(seed=1)
    with pytest.raises(InputError, match=r"another split of data set 'tiny' \(counts"):
        accuracy(counts={"train": 32, "val": 96, "test": 64})
    with pytest.raises(InputError, match="for the classes cat, dog, and data set 'tiny' has car"):
        accuracy(classes=["car", "ship"])
    with pytest.warns(RuntimeWarning, match="trained on other files"):
        accuracy(sha256={"val": "b"})
    noted = read_metadata(out)
    noted["images"]["held_out_alike"] = {"other encoding": "b"}
    save_tensors(out, load_file(out), noted)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trained on other files")
        assert 0 <= accuracy(sha256={"val": "b"}) <= 100
    noted["images"].pop("held_out_alike")
    save_tensors(out, load_file(out), noted)
    part_of_it = {"counts": {"train": 9, "val": 9, "test": 9}, "sha256": {"val": "b"}}
    own = replace(tiny, name="tiny:part", about={**about, **part_of_it})
    with pytest.warns(RuntimeWarning, match="trained on other files"):
        assert 0 <= make_task("mobilenet_v1", own, checkpoint=out).float_accuracy <= 100


# -- the recipe --------------------------------------------------------------------------------


def test_training_learns_the_digits(tmp_path):
    training = Training(epochs=5, batch_size=32, augmentation="none", schedule="one-cycle")
    out = tmp_path / "v1.safetensors"
    card = train_in_pieces("mobilenet_v1", "digits", out, training, **DIGITS)
    assert card["accuracy"]["val"] > 60  # guessing gives 10


@pytest.mark.slow
def test_compiled_steps_train_alike_and_are_written_down(tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    # a high rate would make last digits grow
    training = Training(epochs=1, batch_size=64, augmentation="none", learning_rate=1e-3)
    cards = {}
    for compiled in (False, True):
        out = tmp_path / f"{compiled}.safetensors"
        trained = train_in_pieces(
            "mobilenet_v1", "digits", out, training, **DIGITS, compiled=compiled
        )
        cards[compiled] = trained
    (plain,), (fast,) = (
        list(csv.DictReader((tmp_path / f"{c}.csv").open())) for c in (False, True)
    )
    assert float(fast["loss"]) == pytest.approx(float(plain["loss"]), rel=0.01)
    assert [each.endswith("float32, compiled") for each in cards[True]["devices"]] == [True]
    assert [each.endswith("float32") for each in cards[False]["devices"]] == [True]


def test_what_cannot_be_compiled_is_refused_before_the_first_step(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no working compiler")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(InputError, match="cannot be compiled here: no working compiler"):
        brief(tmp_path / "v2.safetensors", compiled=True)


@pytest.mark.parametrize(("schedule", "rising"), [("cosine", 0.05), ("one-cycle", 0.25)])
def test_the_learning_rate_rises_once_and_falls_to_nothing(schedule, rising):
    training = Training(schedule=schedule, learning_rate=0.2)
    rates = np.array([training.rate(step, 1000) for step in range(1000)])
    top = int(rates.argmax())
    assert top == pytest.approx(1000 * rising, abs=2)
    assert rates.max() == pytest.approx(0.2, rel=0.02)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert 0 < rates[-1] < 2e-4


def test_augmented_images_are_shifted_and_mirrored_each_by_its_own():
    ramp = torch.arange(8.0).expand(200, 1, 8, 8) + 100 * torch.arange(8.0).view(8, 1)
    chance = torch.Generator().manual_seed(0)
    shown = augment(ramp, chance, "crop-flip", padding=2)
    seen = set()
    for image in shown[:, 0]:
        inside = image[2:6, 2:6]  # what comes in at the border is never here
        rightwards = float(inside[0, 1] - inside[0, 0])
        seen.add((rightwards, float(inside[0, 0]) // 100))
        assert torch.equal(inside[1:] - inside[:-1], torch.full((3, 4), 100.0))
        assert torch.equal(inside[:, 1:] - inside[:, :-1], torch.full((4, 3), rightwards))
    assert seen == {(way, row) for way in (-1.0, 1.0) for row in range(5)}
    crops = augment(ramp, chance, "crop", padding=2)
    assert (crops[:, 0, 3, 4] > crops[:, 0, 3, 3]).all()
    assert augment(ramp, chance, "none") is ramp


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be positive"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"augmentation": "flip"}, "unknown augmentation 'flip'"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"seed": -1}, "seed must be 0 to 9223372036854775807, not -1"),
        ({"seed": 2**63}, "seed must be 0 to 9223372036854775807"),
    ],
)
def test_a_recipe_out_of_range_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(BRIEF, **change)


class Viewing(nn.Module):
    """Flattens by a view, answers twice in training, and keeps state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.aux = nn.Conv2d(1, 8, 3), nn.Linear(8, 10), nn.Linear(8, 10)
        self.pooled, self.flat = nn.AdaptiveAvgPool2d(4), nn.Linear(128, 8)

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        assert state == {"version": 1}

    def forward(self, x):
        x = self.pooled(self.conv(x).relu())
        x = self.flat(x.view(x.size(0), -1)).relu()
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


def test_networks_of_every_habit_are_trained_and_searched():
    data, training = load_dataset("digits"), Training(epochs=1, batch_size=64, augmentation="none")
    trainer = Trainer(Viewing(), data, training, torch.device("cpu"))
    assert trainer.epoch().loss < 2.5
    assert len(trainer.round_to_half()) == 3
    task = make_task(trainer.result, data, evaluator="ptq_bn", budget="w4a4")
    assert len(search_policy(task, "ilp-fit", 3)) == 3


def test_weights_that_were_trained_on_images_of_another_shape_than_square_are_used(tmp_path):
    rng = np.random.default_rng(0)
    parts = [
        Split(rng.integers(0, 256, (80, 1, 16, 24), dtype=np.uint8), np.arange(80) % 10)
        for _ in range(3)
    ]
    data = Dataset("wide", 10, (0.5,), (0.25,), *parts)
    out = tmp_path / "wide.safetensors"
    brief = Training(epochs=1, batch_size=64, augmentation="none")
    assert train_in_pieces("mobilenet_v1", data, out, brief, width=0.125)
    task = make_task("mobilenet_v1", data, checkpoint=out, evaluator="ptq_bn", budget="w8a8")
    assert 0 <= task.evaluate(task.uniform()).accuracy <= 100
    square = [Split(part.images[..., :16], part.labels) for part in parts]
    other = Dataset("narrow", 10, (0.5,), (0.25,), *square)
    with pytest.raises(InputError, match=r"images of 16 x 24 pixels, and .*'narrow' has 16 x 16"):
        make_task("mobilenet_v1", other, checkpoint=out)


def test_a_training_that_comes_apart_says_so(tmp_path):
    with pytest.raises(InputError, match=r"diverged in epoch 1 .*smaller learning_rate"):
        brief(tmp_path / "v2.safetensors", replace(BRIEF, learning_rate=1e30))
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".state", ".safetensors")]
    with pytest.raises(InputError, match="897 training images, fewer than a batch of 1000"):
        brief(tmp_path / "v2.safetensors", replace(BRIEF, batch_size=1000))


def test_a_place_that_cannot_be_written_is_known_before_the_first_epoch(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*v2\.csv"):
        brief(tmp_path / "file" / "v2.safetensors")
    with pytest.raises(InputError, match=r"must be called FILE\.safetensors, not .*v2\.pt"):
        brief(tmp_path / "v2.pt")


@pytest.mark.parametrize("augmentation", ["crop", "crop-flip"])
def test_images_too_small_to_be_shifted_are_refused_and_not_a_traceback(augmentation):
    rng = np.random.default_rng(0)
    part = Split(rng.integers(0, 256, (64, 1, 4, 4), dtype=np.uint8), np.arange(64) % 2)
    tiny = Dataset("tiny", 2, (0.5,), (0.25,), part, part, part)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    recipe = Training(batch_size=32, augmentation=augmentation)
    with pytest.raises(InputError, match="images of 4 pixels cannot be shifted by 4: take augm"):
        Trainer(network, tiny, recipe, torch.device("cpu"))
    Trainer(network, tiny, replace(recipe, augmentation="none"), torch.device("cpu")).epoch()


def test_a_batch_too_small_for_batch_norm_is_one_line():
    layers = [torch.nn.Conv2d(1, 4, 8), torch.nn.BatchNorm2d(4), torch.nn.Flatten()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(4, 10))
    recipe = Training(batch_size=1, augmentation="none")
    trainer = Trainer(network, images(40, 1), recipe, torch.device("cpu"))
    with pytest.raises(InputError, match="batch norm cannot be trained on a single value"):
        trainer.epoch()


# -- settings that suit the images -------------------------------------------------------------


def test_small_sets_get_small_batches_and_grey_images_are_not_mirrored():
    few = {"epochs": 30, "batch_size": 32}
    assert Training.for_images(load_dataset("digits")) == Training(**few, augmentation="none")
    assert Training.for_images(images(10_000, 3)) == Training()
    assert Training.for_images(images(9_999, 3)) == Training(**few)
    assert Training.for_images(images(10_000, 1)) == Training(augmentation="none")


def test_what_is_given_is_what_is_trained_with():
    given = {"epochs": 7, "batch_size": 5, "augmentation": "crop-flip", "ema": 0.5}
    digits = load_dataset("digits")
    assert Training.for_images(digits, **given, schedule=None) == Training(**given)
    with pytest.raises(InputError, match="epochs must be positive, not 0"):
        Training.for_images(digits, epochs=0)


# -- the command -------------------------------------------------------------------------------


def test_every_setting_of_a_training_is_a_flag_that_decides_nothing_else_when_left_out():
    flags = {each.name: each.default for each in fields(Train)}
    for setting in fields(Training):
        decided = setting.name in ("epochs", "batch_size", "augmentation")  # by the images
        assert flags[setting.name] == (None if decided else setting.default)


def test_the_command_stops_after_its_minutes_and_goes_on_as_its_card_says(tmp_path):
    out = tmp_path / "v1.safetensors"
    argv = ["train", "mobilenet_v1", "--width", "0.125", "--epochs", "2", "--device", "cpu"]
    threads = torch.get_num_threads()
    done = run_main(main, *argv, "--minutes", "0", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "0 of 2 epochs are done; 28 steps each" in done.stdout
    assert "The time is over: the same command goes on." in done.stdout
    # what the card would say is the same training with every setting written out
    written = Train("mobilenet_v1", width=0.125, epochs=2).command(
        Training(epochs=2, batch_size=32, augmentation="none")
    )
    assert written.startswith("haq-env train mobilenet_v1 --dataset digits --width 0.125 --epochs")
    done = run_main(main, *shlex.split(written)[1:], "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "1 of 2 epochs are done" in done.stdout
    assert f"Written: {out} (val " in done.stdout
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["command"] == written
    assert f"--threads {threads}" in written
    other = run_main(main, *argv, "--seed", "1", "--out", str(out))
    assert other.returncode == 2
    assert "is of a training with seed = 0, and now it is 1" in other.stderr
    assert other.stderr.endswith(" --out gives another file.\n")


def test_a_setting_out_of_range_is_one_line_before_any_image_is_read():
    for flag, value, message in (
        ("--epochs", "0", "epochs must be positive, not 0"),
        ("--seed", "-1", "seed must be 0 to"),
        ("--threads", "0", "threads must be 1 or more, not 0"),
    ):
        done = run_main(main, "train", "resnet20", "--dataset", "cifar10:nowhere", flag, value)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {message}")


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_main(main, "train", "resnet20", "--dataset", "cifar10:nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: CIFAR-10 folder nowhere does not exist")
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_without_a_place_of_their_own_are_called_after_network_and_data():
    folder = Path("runs") / "train"
    half = Train("mobilenet_v1", dataset="cifar10:/some/where", width=0.5)
    assert half.file == folder / "mobilenet_v1_050_cifar10.safetensors"
    assert Train("nets:mine").file == folder / "nets-mine_digits.safetensors"


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_the_commands_that_cards_record_still_ask_for_the_same_training(card, monkeypatch):
    about = json.loads(card.read_text())
    asked: list[Train] = []
    monkeypatch.setattr(Train, "run", lambda self: asked.append(self))
    words = shlex.split(about["command"])
    if words[:2] == ["haq-env", "train"]:
        done = run_main(main, *words[1:])
    else:
        assert words[:2] == ["python", "benchmarks/train_network.py"]
        done = run_main(train_network.main, *words[2:])
    assert done.returncode == 0
    (train,) = asked
    assert (train.network, train.dataset) == (about["network"], f"{about['dataset']}:FOLDER")
    assert {name: getattr(train, name) for name in about["training"]} == about["training"]


def test_the_script_of_the_cards_trains_on_cifar10_where_no_data_set_is_named(monkeypatch):
    asked: list[Train] = []
    monkeypatch.setattr(Train, "run", lambda self: asked.append(self))
    for argv in (["--network", "resnet20"], ["--network=resnet20", "--dataset=digits"]):
        assert run_main(train_network.main, *argv).returncode == 0
    assert [(each.network, each.dataset) for each in asked] == [
        ("resnet20", "cifar10"),
        ("resnet20", "digits"),
    ]
