"""What a search leaves in its folder and beside it, and what it leaves alone."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scripts import Done, run_main
from torch import nn

from haq_env import CostTable, InputError, make_task, search_policy
from haq_env.cli import main
from haq_env.evaluation import Evaluation
from haq_env.hardware.load import cost_table
from haq_env.networks import load_layers

SHORT = ["--algo", "ilp-law", "--episodes", "1", "--evaluator", "ptq_bn", "--final-steps", "0"]
SHORT += ["--final-seeds", "1", "--shortlist", "1"]

MINE = """
import numpy as np
import torch
from torch import nn
from haq_env import Dataset

def net():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3)]
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*layers)

def few():
    return net()[:-1]  # 8 outputs, which is found when an image is seen

def weights():
    return net().state_dict()

def missing():
    return np.load("images.npy")

def pairs():
    one, two = (1, 2, 3)
"""


def search(*argv: str) -> Done:
    return run_main(main, "search", *SHORT, *argv)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of one's own in the current folder."""
    (tmp_path / "mine_folder.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield "mine_folder"
    sys.modules.pop("mine_folder", None)


def test_a_network_that_cannot_be_used_costs_no_earlier_run(mine, tmp_path):
    assert search("--out", "run").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    done = search("--out", "run", "--overwrite", "--network", f"{mine}:few", "--budget", "w4a4")
    assert done.returncode == 2
    assert "but the answer is [1, 8]" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_pictures_of_the_run_before_do_not_stay(tmp_path):
    out = tmp_path / "a folder whose path is too long for a line of eighty" / "run"
    done = search("--out", str(out))
    assert done.returncode == 0
    assert f"Written: {out / 'policy.json'} (the policy)" in done.stdout  # in one piece
    assert (out / "roofline.png").exists()
    assert search("--out", str(out), "--overwrite", "--env", "HAQ-ModelSize-v0").returncode == 0
    assert not (out / "roofline.png").exists()
    assert (out / "bits.png").exists()


def test_where_no_folder_is_given_the_run_names_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert search("--seed", "3").returncode == 0
    assert (tmp_path / "runs" / "HAQ-BISMO-Edge-v0-ilp-law-3" / "policy.json").exists()


def test_an_agent_leaves_nothing_among_the_temporary_files(tmp_path):
    code = (
        "from haq_env import search_policy; from haq_env.yardstick import yardstick; "
        "search_policy(yardstick(0), 'ppo', 3)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("SB3")] == []


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("missing", "cannot be loaded: FileNotFoundError: .*images.npy"),
        ("pairs", "cannot be loaded: ValueError: too many values to unpack"),
    ],
)
def test_what_fails_in_ones_own_data_set_is_named(mine, data, complaint):
    with pytest.raises(InputError, match=f"data set '{mine}:{data}' {complaint}"):
        make_task(f"{mine}:net", f"{mine}:{data}")


def test_what_a_factory_returns_is_named_by_its_type_and_not_printed(mine):
    with pytest.raises(InputError, match=r"object of type OrderedDict .*load_state_dict") as caught:
        load_layers(f"{mine}:weights")
    assert len(str(caught.value)) < 200


class Broken:
    def cost_table(self, layers):
        raise RuntimeError("licence server down")


class Negative:
    def cost_table(self, layers):
        return CostTable(layers.names, {"latency": -np.ones((len(layers), 8, 8))}, hardware="n")


def test_hardware_of_ones_own_that_fails_or_pays_is_one_line():
    layers = make_task().layers
    with pytest.raises(InputError, match="Broken: cost_table failed: RuntimeError: licence server"):
        cost_table(Broken(), layers)
    with pytest.raises(InputError, match=r"'stem\.conv' at w_bits = 1, a_bits = 1 .*below 0"):
        cost_table(Negative(), layers)


class Answers:
    float_accuracy = 98.0

    def __init__(self, accuracy: float) -> None:
        self.accuracy = accuracy

    def evaluate(self, bits):
        return Evaluation(self.accuracy)


@pytest.mark.parametrize("accuracy", [float("nan"), 500.0, -3.0])
def test_an_accuracy_that_is_no_percentage_never_becomes_the_best_one(accuracy):
    with pytest.raises(InputError, match="an accuracy must be a percentage, 0 to 100"):
        search_policy(make_task(evaluator=Answers(accuracy)), "random", 3)


def test_a_network_for_another_image_size_is_one_error_and_no_log(caplog):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 10))
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError, match="does not accept"):
        load_layers(net, image_size=28, in_channels=1)
    assert "Traceback" not in caplog.text
    assert net(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_pinned_layers_of_any_integer_can_be_written_down(tmp_path):
    task = make_task(pinned=[np.int64(0), "classifier"], evaluator="ptq_bn")
    task.policy(task.uniform()).save(tmp_path / "policy.json")
    assert task.settings["pinned"] == [0, "classifier"]
