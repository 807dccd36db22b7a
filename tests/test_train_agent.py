"""train_agent.py: what a run leaves behind, that no crash costs more than the running episode."""

import csv
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch

import haq_env
from haq_env.agents.algorithms import make_agent
from haq_env.agents.checkpoint import load_agent, save_agent
from haq_env.agents.replay import EpisodeMemory
from haq_env.agents.run import search_with_agent
from haq_env.commands.search import Search
from haq_env.env import QuantizationEnv
from haq_env.errors import InputError, OccupiedError
from haq_env.evaluation import Evaluation, Recipe
from haq_env.evaluation.measuring import Measurer
from haq_env.evaluation.trained import TrainedEvaluator
from haq_env.final import choose
from haq_env.layers import Layer, LayerTable
from haq_env.make import make_env, make_task
from haq_env.networks.bundled import WEIGHTS
from haq_env.policy import Policy
from haq_env.run_folder import open_folder
from haq_env.search.history import History
from haq_env.search.run import search_with_baseline
from haq_env.versions import versions

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "train_agent.py"
EPISODES = 6
SETTINGS = ["--episodes", str(EPISODES), "--evaluator", "ptq_bn"]
SHORT = ["--final-steps", "0", "--final-seeds", "1", "--shortlist", "1"]


# -- helpers -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet_process():
    """One thread, as in the processes below; agents seed global generators, so put them back."""
    threads, state = torch.get_num_threads(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(state)  # noqa: NPY002
    torch.set_num_threads(threads)


def start(out: Path, *argv: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *SETTINGS, *SHORT, "--out", str(out), *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out


def main(monkeypatch, *argv: str) -> int:
    """Run the script in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    return 0


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "episodes.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def outcome(folder: Path) -> list[dict[str, str]]:
    """The log but for what depends on the clock and on what was measured before."""
    return [
        {name: text for name, text in row.items() if name not in ("seconds", "cache_hit")}
        for row in log_of(folder)
    ]


def rows_in(folder: Path) -> int:
    path = folder / "episodes.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def episodes_kept(folder: Path) -> int:
    """How many episodes a resumed run will not have to play again."""
    path = folder / "agent.pt"
    if not path.exists():
        return -1
    return torch.load(path, weights_only=True)["counters"]["_episode_num"]


def same_state(left: Path, right: Path) -> bool:
    """Compare two agents bit for bit: networks, optimizers, memory, counters, generators."""

    def flat(part, at=()):
        if isinstance(part, dict):
            return [item for key in part for item in flat(part[key], (*at, key))]
        if isinstance(part, list | tuple):
            return [item for n, each in enumerate(part) for item in flat(each, (*at, n))]
        return [(at, part.numpy().tobytes() if torch.is_tensor(part) else part)]

    states = [torch.load(folder / "agent.pt", weights_only=True) for folder in (left, right)]
    return flat(states[0]) == flat(states[1])


def wait_for_rows(process: subprocess.Popen, folder: Path, rows: int) -> None:
    end = time.monotonic() + 120
    while rows_in(folder) < rows and process.poll() is None:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Unbroken runs of the real script, by algorithm; each is made when it is first wanted."""
    done = {}

    def run(algo: str) -> Path:
        if algo not in done:
            folder = tmp_path_factory.mktemp("runs") / algo
            finish(start(folder, "--algo", algo))
            done[algo] = folder
        return done[algo]

    return run


# -- what a run leaves behind ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ddpg", "td3", "sac"])
def test_a_run_writes_policy_log_and_plots(finished, algo):
    folder = finished(algo)
    task = gym.make("HAQ-BISMO-Edge-v0").unwrapped.task
    rows = log_of(folder)
    assert [int(row["evaluation"]) for row in rows] == list(range(EPISODES + 1))
    history = History.load(folder / "episodes.csv")
    assert (history[0].bits == task.uniform()).all()
    for trial in history:
        assert trial.cost == task.cost(trial.bits)
        assert task.budget.fits(trial.bits)

    policy = Policy.load(folder / "policy.json", task.layers.names)
    record = policy.record
    assert (policy.bits == history.best.bits).all()
    assert record["accuracy"]["search"] == history.best.accuracy
    assert record["accuracy"]["search"] >= record["accuracy"]["uniform_search"]
    assert record["accuracy"]["uniform_search"] == history[0].accuracy
    assert record["cost"]["latency"] <= record["budget"]["limit"] * (1 + 1e-12)
    assert record["evaluations"] == EPISODES + 1
    assert (record["algorithm"], record["env"]) == (algo, "HAQ-BISMO-Edge-v0")
    assert record["evaluator"] == "ptq_bn"
    for name in ("found", "uniform"):
        assert {part: len(v) for part, v in record["accuracy"]["final"][name].items()} == {
            "val": 1,
            "test": 1,
        }
    # a final finetuning of no steps is the search's own evaluation
    assert record["accuracy"]["final"]["found"]["val"] == [history.best.accuracy]
    for name in ("bits.png", "search.png", "roofline.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n")
    assert {each.name for each in folder.iterdir() if each.suffix == ".part"} == set()


@pytest.mark.slow
def test_the_policy_file_has_every_documented_key(finished):
    page = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    page = page.partition("\n## ")[0]  # what follows is about other formats
    cells = re.findall(r"^\| (`.+?) \|", page, flags=re.M)
    names = [name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)]
    assert {"schema", "layers", "budget", "accuracy.final", "versions"} <= set(names)
    document = json.loads((finished("ddpg") / "policy.json").read_text(encoding="utf-8"))
    for name in names:
        value = document
        for key in name.split("."):
            assert key in value, name
            value = value[key]
    assert document["versions"]["torch"] == version("torch")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished, tmp_path, monkeypatch):
    first = finished("ddpg")
    argv = [*SETTINGS, *SHORT, "--algo", "ddpg"]
    assert main(monkeypatch, *argv, "--out", str(tmp_path / "again")) == 0
    assert outcome(tmp_path / "again") == outcome(first)
    assert main(monkeypatch, *argv, "--out", str(tmp_path / "other"), "--seed", "1") == 0
    assert outcome(tmp_path / "other")[0] == outcome(first)[0]  # ptq_bn needs no order of images
    other, one = outcome(tmp_path / "other")[1:], outcome(first)[1:]
    assert all(
        a["requested_w_bits"] != b["requested_w_bits"] for a, b in zip(other, one, strict=True)
    )


# -- crashes of the real process ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "seed"), [("ddpg", 0), ("sac", 1)])
def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(
    finished, tmp_path, algo, seed
):
    rng = np.random.default_rng(seed)
    folder = tmp_path / "killed"
    for rows in sorted(rng.choice(np.arange(1, EPISODES), size=3, replace=False)):
        process = start(folder, "--algo", algo, "--resume")
        wait_for_rows(process, folder, int(rows))
        time.sleep(rng.uniform(0, 0.4))
        kept = rows_in(folder)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert rows_in(folder) >= kept >= rows
        assert episodes_kept(folder) >= kept - 2  # but for row 0, and the running episode
    out = finish(start(folder, "--algo", algo, "--resume"))
    assert "Stopped" not in out
    assert outcome(folder) == outcome(finished(algo))
    assert same_state(folder, finished(algo))
    ours, theirs = (json.loads((f / "policy.json").read_text()) for f in (folder, finished(algo)))
    assert ours == theirs


@pytest.mark.slow
def test_ctrl_c_ends_a_search_with_a_policy_and_the_run_can_go_on(finished, tmp_path):
    folder = tmp_path / "stopped"
    process = start(folder, "--algo", "td3")
    wait_for_rows(process, folder, 4)
    process.send_signal(signal.SIGINT)
    out = finish(process)
    rows = rows_in(folder)
    assert 4 <= rows <= EPISODES
    assert re.search(rf"Stopped after {rows - 1} episodes; --resume goes on from\s+here", out)
    record = Policy.load(folder / "policy.json").record
    assert record["evaluations"] == rows
    assert outcome(folder) == outcome(finished("td3"))[:rows]
    finish(start(folder, "--algo", "td3", "--resume"))
    assert outcome(folder) == outcome(finished("td3"))


@pytest.mark.slow
def test_a_baseline_that_is_killed_goes_on_to_what_an_unbroken_one_finds(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, "--algo", "evolution"))
    assert rows_in(whole) == EPISODES + 1
    process = start(killed, "--algo", "evolution")
    wait_for_rows(process, killed, 3)
    process.kill()
    process.communicate()
    with (killed / "episodes.csv").open("a") as log:
        log.write("7,22")  # a row that the crash has cut off
    kept = log_of(killed)[:3]
    finish(start(killed, "--algo", "evolution", "--resume"))
    assert log_of(killed)[:3] == kept  # with their times: not measured again
    assert outcome(killed) == outcome(whole)
    ours, theirs = (json.loads((f / "policy.json").read_text()) for f in (killed, whole))
    assert ours == theirs


# -- Ctrl-C at other moments -------------------------------------------------------------------


def interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "moment",
    [
        "haq_env.evaluation.trained.TrainedEvaluator.evaluate",
        "haq_env.final.choose",
        "haq_env.final.finish",
        "haq_env.make.make_env",
    ],
)
def test_ctrl_c_without_a_policy_to_write_is_exit_code_130_and_one_line(
    moment, tmp_path, monkeypatch, capsys
):
    if not moment.endswith("evaluate"):
        monkeypatch.setattr(
            TrainedEvaluator, "evaluate", lambda self, bits: Evaluation(float(bits.mean()))
        )
    monkeypatch.setattr(moment, interrupt)
    argv = ["--episodes", "1", "--evaluator", "ptq_bn", *SHORT, "--out", str(tmp_path / "run")]
    assert main(monkeypatch, *argv) == 130
    assert capsys.readouterr().err.startswith("stopped; --resume goes on")
    assert not (tmp_path / "run" / "policy.json").exists()


# -- what cannot be used -----------------------------------------------------------------------


@pytest.fixture
def no_evaluation(monkeypatch):
    def spent(*_args):
        pytest.fail("an evaluation was spent")

    monkeypatch.setattr(TrainedEvaluator, "bench", property(spent))
    monkeypatch.setattr(TrainedEvaluator, "evaluate", spent)


def refused(monkeypatch, capsys, *argv: str) -> str:
    """The line that the script prints before it exits with 2."""
    assert main(monkeypatch, *argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--episodes", "0"], "episodes must be 1 or more, not 0"),
        (["--episodes", "-5"], "episodes must be 1 or more, not -5"),
        (["--final-steps", "-1"], "final_steps must be 0 or more, not -1"),
        (["--final-seeds", "0"], "final_seeds must be 1 or more, not 0"),
        (["--threads", "0"], "threads must be 1 or more, not 0"),
        (["--shortlist", "0"], "shortlist must be 1 or more, not 0"),
        (["--seed", "-1"], "seed must be 0 to"),
        (["--seed", str(2**40)], "seed must be 0 to"),
        (["--env", "HAQ-BISMO-Egde-v0"], "Did you mean 'HAQ-BISMO-Edge-v0'?"),
        (["--env", "HAQ-BISMO-Edge-v7"], "Environment version `v7`"),
        (["--env", "nowhere:HAQ-v0"], "No module named 'nowhere'"),
        (["--env", "not an id"], "Malformed environment ID"),
        (["--env", "CartPole-v1"], "'CartPole-v1' cannot be made"),
        (["--env", "HAQ-BISMO-Edge-Discrete-v0", "--algo", "ddpg"], "ddpg needs continuous"),
        (["--env", "HAQ-ModelSize-Discrete-v0", "--algo", "sac"], "sac needs continuous actions"),
        (["--network", "mobilenet_v9"], "unknown network 'mobilenet_v9'. Did you mean"),
        (["--network", "mobilenet_v3"], "Did you mean 'mobilenet_v3_large'"),
        (["--network", "mine"], "any torchvision classification model, or package.module:factory"),
        (["--network", "nowhere:net"], "importing 'nowhere' failed"),
        (["--network", "resnet20"], "no trained weights of network 'resnet20'"),
        (["--dataset", "svhn"], "unknown data set 'svhn'"),
        (["--dataset", "nowhere:data"], "nowhere:data"),
        (["--checkpoint", "gone.safetensors"], "checkpoint gone.safetensors does not exist"),
        (["--hardware", "bismo-egde"], "Did you mean 'bismo-edge'"),
        (["--hardware", "gone.toml"], "gone.toml"),
        (["--metric", "speed"], "unknown metric 'speed'"),
        (["--metric", "energy"], "BISMO has no published energy model"),
        (["--budget", "0"], "budget must be a share in (0, 1]"),
        (["--budget", "1.01"], "budget must be a share in (0, 1]"),
        (["--budget", "nan"], "budget must be a share in (0, 1]"),
        (["--budget", "w9a9"], "or the name of a uniform policy such as 'w4a4'"),
        (["--budget", "0.01"], "What the uniform policy 'w4a4' costs can be reached"),
        (["--budget", "w4a4", "--bits", "6", "8"], "What the uniform policy 'w6a6' costs"),
        (["--reward-steps", "0"], "--reward-steps must be 1 or more"),
        (["--reward-rate", "-1"], "learning_rate must be positive"),
        (["--evaluator", "ptq_bn", "--reward-steps", "9"], "ptq_bn finetunes nothing"),
        (["--bits", "0", "8"], "bits must lie within 1 to 8"),
        (["--bits", "2", "9"], "bits must lie within 1 to 8"),
        (["--bits", "6", "4"], "the smallest width 6 is above the largest 4"),
        (["--device", "toaster"], "torch device 'toaster' cannot be used"),
        (["--resume", "--overwrite"], "give --resume or --overwrite, not both"),
        (["--workers", "0"], "workers must be 1 or more, not 0"),
        (["--workers", "2", "--threads", "2"], "each of several --workers has one thread"),
        (["--cache", str(SCRIPT)], "train_agent.py cannot be used: file is not a database"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_any_evaluation(
    argv, message, tmp_path, monkeypatch, capsys, no_evaluation
):
    line = refused(monkeypatch, capsys, "--out", str(tmp_path / "run"), *argv)
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argv", [["--algo", "alphazero"], ["--episodes", "many"], ["--speed", "3"]]
)
def test_arguments_that_cannot_be_parsed_are_exit_code_2(argv, monkeypatch, capsys):
    assert main(monkeypatch, *argv) == 2
    assert argv[0] in capsys.readouterr().err


def test_the_real_process_says_so_on_stderr_and_nowhere_else(tmp_path):
    argv = ["--env", "HAQ-BISMO-Edge-Discrete-v0", "--algo", "ddpg"]
    process = start(tmp_path / "run", *argv)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("error: ddpg needs continuous actions")
    assert err.count("\n") == 1


def test_a_baseline_has_no_agent_to_be_transferred(monkeypatch, capsys, no_evaluation):
    line = refused(monkeypatch, capsys, "--algo", "ilp-fit", "--transfer-from", "runs/none")
    assert "ilp-fit is a baseline and has no agent" in line


def test_nothing_is_thrown_away_for_a_run_that_cannot_begin(
    a_run, monkeypatch, capsys, no_evaluation
):
    before = contents(a_run)
    argv = ["--out", str(a_run), "--overwrite"]
    line = refused(monkeypatch, capsys, *argv, "--algo", "ddpg", "--transfer-from", str(a_run))
    assert "--transfer-from and --out are one folder" in line
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "needs Optuna" in refused(monkeypatch, capsys, *argv, "--algo", "bayesian")
    gym.register("Own-v0", "haq_env.env:QuantizationEnv", kwargs={"evaluator": Flat()})
    try:
        line = refused(monkeypatch, capsys, *argv, "--env", "Own-v0", "--algo", "ddpg")
    finally:
        gym.registry.pop("Own-v0")
    assert "has an evaluator of its own (Flat) and no network" in line
    assert contents(a_run) == before


class Flat:
    """Likes all policies."""

    float_accuracy = 90.0

    def evaluate(self, bits):
        return Evaluation(50.0)


@pytest.mark.parametrize("algo", ["ddpg", "random"])
def test_a_run_is_not_gone_on_with_on_a_machine_that_has_changed(
    algo, tmp_path, monkeypatch, capsys
):
    machine, out = tmp_path / "my.toml", tmp_path / "run"
    machine.write_text('model = "bismo-edge"\naxi_bits = 8\n')
    argv = ["--algo", algo, "--episodes", "2", "--evaluator", "ptq_bn", *SHORT]
    argv += ["--hardware", str(machine), "--out", str(out)]
    assert main(monkeypatch, *argv) == 0
    capsys.readouterr()
    before = contents(out)
    machine.write_text('model = "bismo-edge"\n')
    assert main(monkeypatch, *argv, "--resume") == 2
    assert "cannot resume: evaluation 0 cost" in capsys.readouterr().err
    assert contents(out) == before


def test_episodes_after_the_agent_was_saved_are_not_measured_again(tmp_path):
    env = gym.make("HAQ-BISMO-Edge-v0").unwrapped
    measured = []

    def measure(self, bits, best):
        measured.append(bits.tobytes())
        if len(measured) == 6 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt  # inside of the rollout
        return Evaluation(float(bits.mean()), 0.1)

    stopped: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Measurer, "measure", measure)
        assert len(search_with_agent(env, "ppo", 12, 0, folder=tmp_path)) == 5
        fresh = gym.make("HAQ-BISMO-Edge-v0").unwrapped
        history = search_with_agent(fresh, "ppo", 12, 0, folder=tmp_path, resume=True)
    assert len(history) == 13
    assert len(measured) - 1 == len(set(measured))  # one was interrupted, none is measured twice


def test_versions_are_found_without_an_installation(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("haq_env.versions.version", missing)
    found = versions()
    assert found["haq-env"] == haq_env.__version__
    assert "torch" not in found


def test_a_log_of_another_search_is_not_gone_on_with(tmp_path):
    task = make_task(evaluator="ptq_bn")
    search_with_baseline(task, "random", 3, 0, folder=tmp_path)
    before = (tmp_path / "episodes.csv").read_bytes()
    with pytest.raises(InputError, match="evaluation 1 would be another policy now"):
        search_with_baseline(task, "random", 4, 1, folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="has 3 evaluations already, more than 2"):
        search_with_baseline(task, "random", 2, 0, folder=tmp_path, resume=True)
    assert (tmp_path / "episodes.csv").read_bytes() == before
    seen = []
    history = search_with_baseline(
        task, "random", 4, 0, folder=tmp_path, resume=True, progress=lambda h: seen.append(len(h))
    )
    assert seen == [1, 2, 3, 4]
    assert (tmp_path / "episodes.csv").read_bytes().startswith(before)
    assert [t.w_bits for t in history] == [row["w_bits"] for row in log_of(tmp_path)]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, no_evaluation):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refused(monkeypatch, capsys, "--out", str(out))
        assert f"cannot write to the folder {out}" in line
    assert (tmp_path / "file").read_text() == "kept"


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.name != ".lock"}


@pytest.fixture
def a_run(tmp_path):
    """The folder of a run with two episodes of a cheap evaluator, ddpg, seed 0."""
    folder = tmp_path / "run"
    open_folder(folder, settings_of(), resume=False, overwrite=False)
    env = gym.make("HAQ-BISMO-Edge-v0").unwrapped
    env.task.evaluator.evaluate = lambda bits: Evaluation(float(bits.mean()))
    search_with_agent(env, "ddpg", 2, 0, folder=folder)
    (folder / "policy.json").write_text("{}")
    return folder


def settings_of(**changed):
    """What a run with --algo ddpg --episodes 2 and nothing else is compared by."""
    return Search(algo="ddpg", episodes=2, **changed).record()


def test_a_run_goes_on_with_the_weights_it_began_with(tmp_path, monkeypatch, capsys, no_evaluation):
    file = tmp_path / "mine.safetensors"
    shutil.copy(WEIGHTS / "mobilenet_v1_digits.safetensors", file)
    argv = ["--algo", "ddpg", "--episodes", "2", "--checkpoint", str(file)]
    argv += ["--out", str(tmp_path / "run"), "--resume"]
    kept = {**settings_of(checkpoint=file), "weights": "others"}
    open_folder(tmp_path / "run", kept, resume=False, overwrite=False)
    line = refused(monkeypatch, capsys, *argv)
    assert "cannot resume" in line
    assert "weights was 'others' and is now" in line


def test_a_run_goes_on_with_the_images_it_began_with(tmp_path, monkeypatch, capsys, no_evaluation):
    (tmp_path / "own_images.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import replace
            from haq_env.data import load_dataset

            def data():
                found = load_dataset("digits")
                return replace(found, name="own", val=found.val.first(100))
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    weights = WEIGHTS / "mobilenet_v1_digits.safetensors"
    argv = ["--algo", "ddpg", "--episodes", "2", "--dataset", "own_images:data"]
    argv += ["--checkpoint", str(weights), "--out", str(tmp_path / "run"), "--resume"]
    settings = settings_of(dataset="own_images:data", checkpoint=weights)
    open_folder(tmp_path / "run", {**settings, "images": "others"}, resume=False, overwrite=False)
    line = refused(monkeypatch, capsys, *argv)
    assert "cannot resume" in line
    assert "images was 'others' and is now" in line


FROZEN = """
import haq_env.networks as networks
from haq_env.networks.bundled import WEIGHTS
from haq_env.networks.checkpoint import load_checkpoint, read_metadata

def net(**_):
    path = WEIGHTS / "mobilenet_v1_digits.safetensors"
    module = networks.load_network("mobilenet_v1", **read_metadata(path)["build"])
    load_checkpoint(path, module)
    return module.requires_grad_(False)
"""


def test_a_frozen_network_is_refused_before_the_search_and_not_after_it(
    tmp_path, monkeypatch, capsys, no_evaluation
):
    (tmp_path / "frozen_mine.py").write_text(FROZEN)
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["--network", "frozen_mine:net", "--evaluator", "ptq_bn", "--out", str(tmp_path / "run")]
    assert "or give --final-steps 0" in refused(monkeypatch, capsys, *argv)
    assert not (tmp_path / "run").exists()


def test_of_a_frozen_network_learned_steps_can_be_finetuned(tmp_path, monkeypatch, capsys):
    (tmp_path / "frozen_steps.py").write_text(FROZEN)
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["--network", "frozen_steps:net", "--quantizer", "lsq", "--evaluator", "ptq_bn"]
    argv += ["--algo", "ilp-law", "--episodes", "1", "--final-steps", "2", "--final-seeds", "1"]
    assert main(monkeypatch, *argv, "--out", str(tmp_path / "run")) == 0
    assert (tmp_path / "run" / "policy.json").exists()


def test_a_run_that_is_there_is_neither_mixed_with_another_nor_lost(
    a_run, monkeypatch, capsys, no_evaluation
):
    before = contents(a_run)
    argv = ["--algo", "ddpg", "--episodes", "2", "--out", str(a_run)]
    line = refused(monkeypatch, capsys, *argv)
    assert f"{a_run} holds a run already: " in line
    assert "--resume goes on with it, another --out leaves it alone, --overwrite throws it" in line
    for change, message in (
        (["--seed", "1"], "seed was 0 and is now 1"),
        (["--algo", "sac"], "algo was 'ddpg' and is now 'sac'"),
        (["--episodes", "3"], "episodes was 2 and is now 3"),
        (["--budget", "0.5"], "budget was None and is now '0.5'"),
        (["--bits", "2", "6"], "bits was None and is now [2, 6]"),
        (["--evaluator", "ptq_bn"], "evaluator was None and is now 'ptq_bn'"),
    ):
        line = refused(monkeypatch, capsys, *argv, *change, "--resume")
        assert f"cannot resume {a_run}: {message}" in line
    # --overwrite throws nothing away for a run that cannot begin
    for wrong in (["--env", "HAQ-BISMO-Edge-Discrete-v0"], ["--final-steps", "-1"]):
        refused(monkeypatch, capsys, *argv, *wrong, "--overwrite")
    assert contents(a_run) == before


def test_a_run_whose_agent_is_lost_is_kept_until_somebody_says_so(
    a_run, monkeypatch, capsys, no_evaluation
):
    (a_run / "agent.pt").unlink()
    before = contents(a_run)
    argv = ["--algo", "ddpg", "--episodes", "2", "--out", str(a_run), "--resume"]
    assert main(monkeypatch, *argv) == 2
    error = capsys.readouterr().err
    assert "agent.pt is missing. Without resume the run is thrown away." in error
    assert error.endswith(" --overwrite throws it away.\n")
    assert "--resume goes on" not in error
    assert contents(a_run) == before


def test_settings_of_every_kind_are_the_same_when_they_are_resumed(tmp_path):
    settings = settings_of(
        bits=(3, 7), budget="0.5", checkpoint=Path("a.safetensors"), hardware="b.toml"
    )
    open_folder(tmp_path / "run", settings, resume=False, overwrite=False)
    (tmp_path / "run" / "episodes.csv").touch()
    open_folder(tmp_path / "run", settings, resume=True, overwrite=False)
    other = {**settings, "budget": "0.6"}
    with pytest.raises(InputError, match=r"budget was '0\.5' and is now '0\.6'"):
        open_folder(tmp_path / "run", other, resume=True, overwrite=False)


def test_a_run_that_failed_before_its_first_evaluation_is_in_nobodys_way(tmp_path):
    for seed in (1, 2):
        settings = settings_of(seed=seed)
        open_folder(tmp_path / "run", settings, resume=False, overwrite=False)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["seed"] == 2
    (tmp_path / "run" / "episodes.csv").touch()
    with pytest.raises(OccupiedError, match="holds a run already: resume it, overwrite it, or"):
        open_folder(tmp_path / "run", settings, resume=False, overwrite=False)
    with pytest.raises(InputError, match="resume and overwrite contradict each other"):
        open_folder(tmp_path / "run", settings, resume=True, overwrite=True)


def test_an_agent_with_other_actions_throws_no_run_away(tmp_path, monkeypatch, capsys, a_run):
    source = tmp_path / "source"
    source.mkdir()
    env = make_env("HAQ-BISMO-Edge-Discrete-v0", evaluator="ptq_bn")
    search_with_agent(env, "dqn", 1, 0, folder=source)
    record = {"env": "HAQ-BISMO-Edge-Discrete-v0", "algo": "dqn"}
    (source / "settings.json").write_text(json.dumps(record))
    before = contents(a_run)
    argv = ["--env", "HAQ-ModelSize-Discrete-v0", "--algo", "dqn", "--transfer-from", str(source)]
    line = refused(monkeypatch, capsys, *argv, "--out", str(a_run), "--overwrite")
    assert "is not of an agent with these networks" in line
    assert contents(a_run) == before


def test_a_result_is_shown_and_kept_where_a_plot_cannot_be_drawn(tmp_path, monkeypatch, capsys):
    def undrawn(*_: object) -> None:
        raise InputError("latency of layer 'x' is zero.")

    monkeypatch.setattr("haq_env.report.roofline.plot_roofline", undrawn)
    out = tmp_path / "[v1]"  # which is no markup
    argv = ["--algo", "random", "--evaluator", "ptq_bn", "--episodes", "1", "--final-steps", "0"]
    assert main(monkeypatch, *argv, "--out", str(out)) == 0
    told = capsys.readouterr()
    assert "latency of layer 'x' is zero" in told.err
    assert "uniform" in told.out
    assert "[v1]" in told.out.replace("\n", "")
    assert (out / "policy.json").exists()


@pytest.mark.slow
def test_a_search_can_have_another_quantizer_and_says_which(tmp_path):
    argv = ["--algo", "ilp-law", "--episodes", "1", "--quantizer", "kmeans", "--metric", "size"]
    finish(start(tmp_path, *argv, "--budget", "0.5"))
    policy = Policy.load(tmp_path / "policy.json")
    assert policy.record["quantizer"] == "kmeans"
    assert json.loads((tmp_path / "settings.json").read_text())["quantizer"] == "kmeans"


def test_a_run_is_not_resumed_for_fewer_episodes_than_it_has(tmp_path):
    env = make_env("HAQ-BISMO-Edge-v0", evaluator="ptq_bn")
    search_with_agent(env, "ppo", 3, 0, folder=tmp_path)
    with pytest.raises(InputError, match="has 3 episodes, more than 2"):
        search_with_agent(env, "ppo", 2, 0, folder=tmp_path, resume=True)


def test_a_wrapper_that_would_never_be_called_is_refused():
    env = gym.make("HAQ-BISMO-Edge-v0", evaluator="ptq_bn")
    with pytest.raises(InputError, match="the wrapper TransformReward would never be called"):
        search_with_agent(gym.wrappers.TransformReward(env, lambda r: -r), "ddpg", 1, 0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("settings.json", cut, "settings.json cannot be read"),
        ("settings.json", Path.unlink, "it has no settings.json"),
        ("settings.json", lambda path: path.write_text("[]"), "holds no settings of a run"),
        ("agent.pt", cut, "cannot read the agent's state"),
        ("agent.pt", Path.unlink, "the agent's state"),
        ("agent.pt", lambda path: torch.save([1], path), "is not of an agent with these settings"),
        ("agent.pt", lambda path: torch.save({}, path), "is not of an agent with these settings"),
        ("episodes.csv", cut, "episodes.csv"),
        ("episodes.csv", Path.unlink, "cannot read"),
    ],
)
def test_a_damaged_run_is_one_line_and_stays_as_it_is(
    a_run, name, damage, message, monkeypatch, capsys, no_evaluation
):
    damage(a_run / name)
    before = contents(a_run)
    argv = ["--algo", "ddpg", "--episodes", "2", "--out", str(a_run), "--resume"]
    assert main(monkeypatch, *argv) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert message in line
    assert str(a_run) in line
    assert contents(a_run) == before


def test_files_of_a_run_without_its_settings_are_not_thrown_away(
    tmp_path, monkeypatch, capsys, no_evaluation
):
    (tmp_path / "policy.json").write_text("precious")
    assert "holds a run already" in refused(monkeypatch, capsys, "--out", str(tmp_path))
    assert contents(tmp_path) == {"policy.json": b"precious"}


# -- the search itself, on a cheap problem -----------------------------------------------------

KINDS = LayerTable(
    "toy",
    (
        Layer("stem", "conv", 3, 16, (3, 3), in_size=(8, 8), out_size=(8, 8), signed_input=True),
        *(
            layer
            for index in range(4)
            for layer in (
                Layer(
                    f"depthwise.{index}",
                    "depthwise",
                    16,
                    16,
                    (3, 3),
                    groups=16,
                    in_size=(8, 8),
                    out_size=(8, 8),
                ),
                Layer(f"pointwise.{index}", "conv", 16, 16, in_size=(8, 8), out_size=(8, 8)),
            )
        ),
        Layer("classifier", "linear", 16, 10),
    ),
    (3, 8, 8),
)


class Additive:
    """Depthwise layers need their weight bits, the others their activation bits."""

    float_accuracy = 100.0

    def __init__(self, layers):
        depthwise = np.array([layer.kind == "depthwise" for layer in layers])[:, None]
        importance = np.where(depthwise, [1.0, 0.1], [0.1, 1.0])
        self._importance = 100 * importance / importance.sum()
        self.evaluations = 0

    def evaluate(self, bits):
        self.evaluations += 1
        return Evaluation(float(100 - (self._importance * 2.0 ** (2 - bits)).sum()))


class Pattern:
    """Ten points for each bit of distance to a pattern; any constant is as bad as chance."""

    float_accuracy = 100.0

    def __init__(self, layers):
        depthwise = np.array([layer.kind == "depthwise" for layer in layers])[:, None]
        self._wanted = np.where(depthwise, [8, 2], [2, 8])[1:-1]

    def evaluate(self, bits):
        return Evaluation(float(100 - 10 * np.abs(bits[1:-1] - self._wanted).mean()))


def toy(layers=KINDS, budget=0.5, evaluator=Additive, **settings) -> QuantizationEnv:
    return QuantizationEnv(
        make_task(
            torch.nn.Identity(),
            layers=layers,
            evaluator=evaluator(layers),
            hardware="bismo-edge",
            budget=budget,
            **settings,
        )
    )


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
def test_the_agent_is_a_stock_class_that_samples_from_a_stock_memory(name):
    agent = make_agent(name, toy(), seed=0, warmup=1)
    assert type(agent) is getattr(stable_baselines3, name.upper())
    assert type(agent.policy) is agent.policy_aliases["MlpPolicy"]
    assert type(agent.policy).__module__.startswith("stable_baselines3.")
    # only what is remembered of an episode is worked out here (equal to SB3's n-step returns, see
    # test_agents.py); all that is drawn from it is SB3's own code
    own = {name for name in vars(EpisodeMemory) if callable(getattr(EpisodeMemory, name))}
    assert (type(agent.replay_buffer), own) == (EpisodeMemory, {"add"})
    assert EpisodeMemory.__base__ is stable_baselines3.common.buffers.ReplayBuffer


@pytest.mark.slow
@pytest.mark.parametrize(("name", "episodes"), [("ddpg", 120), ("td3", 120), ("sac", 200)])
def test_the_agent_learns(name, episodes):
    warmup = 20
    env = toy(budget=1.0, evaluator=Pattern, fill_up=False)  # what is asked for is what is measured
    history = search_with_agent(env, name, episodes, 0, warmup=warmup)
    random = np.array([trial.accuracy for trial in history[1 : warmup + 1]])
    learned = np.array([trial.accuracy for trial in history[-20:]])
    assert learned.mean() > random.mean() + 2 * random.std(ddof=1) / np.sqrt(warmup)


def test_every_episode_is_one_evaluation_and_the_uniform_policy_is_number_zero():
    env = toy()
    seen = []
    history = search_with_agent(env, "ddpg", 5, 0, progress=lambda h: seen.append(len(h)))
    assert len(history) == env.task.evaluator.evaluations == 6
    assert seen == [1, 2, 3, 4, 5, 6]
    assert (history[0].bits == env.task.uniform()).all()
    assert history[0].requested_w_bits == history[0].w_bits


def test_warm_up_episodes_are_random_over_the_whole_range_of_bits():
    history = search_with_agent(toy(), "ddpg", 60, 0, warmup=20)
    asked = "".join(trial.requested_w_bits[1:-1] for trial in history[1:21])
    counts = np.array([asked.count(str(bits)) for bits in range(2, 9)])
    expected = len(asked) / 7
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # chi-square, 6 degrees: p = 0.001


class Crash(BaseException):
    """The process ends here."""


CRASHES = {
    "while a policy is measured": (Additive, "evaluate", False),
    "before a row is written": (History, "add", False),
    "after a row was written": (History, "add", True),
    "while the agent learns": ("algorithm", "train", False),
    "after the agent has learned": ("algorithm", "train", True),
    "before the agent is written": (Path, "replace", False),
    "after the agent was written": (Path, "replace", True),
}


def crash_at(monkeypatch, agent_class, owner, method, after, call):
    """Let the n-th call of a method end the process, before or after it has done its work."""
    owner = agent_class if owner == "algorithm" else owner
    really, calls = getattr(owner, method), []

    def crashing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) != call:
            return really(self, *args, **kwargs)
        if after:
            really(self, *args, **kwargs)
        raise Crash

    monkeypatch.setattr(owner, method, crashing)


@pytest.mark.slow
def test_a_second_crash_while_catching_up_loses_no_measurement(tmp_path, monkeypatch):
    measured: list[bytes] = []
    limit = [13]

    def measure(self, bits, best=0.0):
        if len(measured) >= limit[0]:
            raise Crash
        measured.append(bits.tobytes())
        return Evaluation(float(bits.mean()))

    monkeypatch.setattr(Measurer, "measure", measure)
    folder = made(tmp_path / "run")
    crashes = 0
    while True:  # PPO is saved after ten episodes: up to nine are played again
        env = gym.make("HAQ-BISMO-Edge-v0").unwrapped
        try:
            search_with_agent(env, "ppo", 24, 0, folder=folder, resume=True)
            break
        except Crash:
            crashes += 1
            limit[0] = max(limit[0], len(measured)) + 1
    assert crashes > 5
    assert len(measured) == len(set(measured))
    assert not (folder / "episodes.measured.csv").exists()


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
@pytest.mark.parametrize("moment", list(CRASHES))
def test_a_crash_at_any_moment_costs_the_running_episode_at_most(
    name, moment, tmp_path, monkeypatch
):
    agent_class = getattr(stable_baselines3, name.upper())

    def env():  # three decisions: an odd number of updates after each episode
        return toy(LayerTable("toy", KINDS.layers[:5]), budget="w4a8", quantizer="kmeans")

    episodes = 14
    search_with_agent(env(), name, episodes, 0, folder=made(tmp_path / "unbroken"))
    folder = made(tmp_path / "broken")
    for call in (1, 3, 2, 5):
        with monkeypatch.context() as patch:
            crash_at(patch, agent_class, *CRASHES[moment], call)
            before = episodes_kept(folder)
            with pytest.raises(Crash):
                search_with_agent(env(), name, episodes, 0, folder=folder, resume=True)
        assert episodes_kept(folder) >= max(before, rows_in(folder) - 2)
        torn = folder / "episodes.csv"
        if torn.exists() and rows_in(folder) > 1:  # a row that was being written
            torn.write_bytes(torn.read_bytes() + b"9,8")
    history = search_with_agent(env(), name, episodes, 0, folder=folder, resume=True)
    assert outcome(folder) == outcome(tmp_path / "unbroken")
    assert same_state(folder, tmp_path / "unbroken")
    assert [trial.accuracy for trial in history] == [
        float(row["accuracy"]) for row in log_of(tmp_path / "unbroken")
    ]


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpg", "sac"])
def test_a_run_can_go_on_when_its_memory_has_wrapped_around(name, tmp_path):
    layers, budget = LayerTable("toy", KINDS.layers[:3]), 0.85  # two decisions
    episodes = 150
    search_with_agent(toy(layers, budget), name, episodes, 0, folder=made(tmp_path / "unbroken"))
    folder = made(tmp_path / "broken")

    def stop(history):
        if len(history) == 141:
            raise Crash

    with pytest.raises(Crash):
        search_with_agent(toy(layers, budget), name, episodes, 0, folder=folder, progress=stop)
    agent = make_agent(name, toy(layers, budget), 0, 20)
    assert load_agent(agent, folder / "agent.pt") == 139
    assert agent.replay_buffer.full
    search_with_agent(toy(layers, budget), name, episodes, 0, folder=folder, resume=True)
    assert outcome(folder) == outcome(tmp_path / "unbroken")
    assert same_state(folder, tmp_path / "unbroken")


def test_resuming_a_finished_run_measures_nothing_and_changes_nothing(tmp_path):
    first = search_with_agent(toy(), "td3", 4, 0, folder=tmp_path)
    before = (tmp_path / "episodes.csv").read_bytes()
    env = toy()
    again = search_with_agent(env, "td3", 4, 0, folder=tmp_path, resume=True)
    assert list(again) == list(first)
    assert env.task.evaluator.evaluations == 0
    assert (tmp_path / "episodes.csv").read_bytes() == before


def test_a_run_that_is_not_resumed_begins_anew(tmp_path):
    search_with_agent(toy(), "ddpg", 3, 0, folder=tmp_path)
    first = outcome(tmp_path)
    search_with_agent(toy(), "ddpg", 3, 1, folder=tmp_path)
    assert outcome(tmp_path) != first
    search_with_agent(toy(), "ddpg", 3, 0, folder=tmp_path)
    assert outcome(tmp_path) == first


def test_the_state_of_another_agent_is_refused(tmp_path):
    state = tmp_path / "agent.pt"
    agent = make_agent("ddpg", toy(), 0, 1)
    save_agent(agent, state)
    assert load_agent(make_agent("ddpg", toy(), 5, 1), state) == 0
    with pytest.raises(InputError, match=re.escape(f"{state} is not of an agent with these")):
        load_agent(make_agent("sac", toy(), 0, 1), state)


def test_a_pickle_in_place_of_the_state_is_not_run(tmp_path):
    state, trace = tmp_path / "agent.pt", tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (trace,))

    torch.save(Evil(), state)
    with pytest.raises(InputError, match="cannot read the agent's state"):
        load_agent(make_agent("ddpg", toy(), 0, 1), state)
    assert not trace.exists()


def test_ctrl_c_returns_what_was_measured(tmp_path):
    def stop(history):
        if len(history) == 4:
            raise KeyboardInterrupt

    unbroken = search_with_agent(toy(), "ddpg", 6, 0)
    history = search_with_agent(toy(), "ddpg", 6, 0, folder=tmp_path, progress=stop)
    assert policies(history) == policies(unbroken)[:4]
    history = search_with_agent(toy(), "ddpg", 6, 0, folder=tmp_path, resume=True)
    assert policies(history) == policies(unbroken)


def policies(history):
    return [(trial.w_bits, trial.a_bits, trial.accuracy) for trial in history]


# -- which policy is reported ------------------------------------------------------------------


def test_of_equally_good_policies_the_first_is_chosen_and_of_a_shortlist_the_best_afterwards():
    task = make_task(evaluator="ptq_bn")
    history = History()
    trials = {}
    from haq_env.search.history import trial_of

    for name, w_bits, accuracy in (
        ("worse", 3, 50.0),
        ("first", 4, 90.0),
        ("tied", 5, 90.0),
        ("again", 4, 90.0),
        ("third", 6, 80.0),
    ):
        bits = task.space.uniform(w_bits, 2)
        trials[name] = trial_of(task, bits, bits, Evaluation(accuracy))
        history.add(trials[name])
    asked = []

    def final(bits, recipe, seed, parts):
        assert parts == ("val",)  # test images choose nothing, and are not looked at
        asked.append((int(bits[1, 0]), seed))
        return {"val": float(bits[1, 0])}

    task.evaluator.final = final
    recipe = Recipe(steps=0)
    assert choose(task, history, recipe, 7, 1) is trials["first"] is history.best
    assert asked == []
    assert choose(task, history, recipe, 7, 2) is trials["tied"]
    assert asked == [(4, 7), (5, 7)]
    assert choose(task, history, recipe, 7, 3) is trials["third"]
    assert choose(task, history, recipe, 7, 99) is trials["third"]


def test_the_figures_and_the_policy_of_a_run_survive_a_copy_of_its_folder(a_run, tmp_path):
    shutil.copytree(a_run, tmp_path / "copy")
    env = gym.make("HAQ-BISMO-Edge-v0").unwrapped
    history = search_with_agent(env, "ddpg", 2, 0, folder=tmp_path / "copy", resume=True)
    assert len(history) == 3
    assert env.task.evaluate(history[1].bits).cache_hit


def test_the_rewards_finetuning_can_be_as_long_as_the_data_want(tmp_path, monkeypatch):
    argv = ["--algo", "ilp-law", "--episodes", "1", "--final-steps", "0", "--final-seeds", "1"]
    accuracies = {}
    for steps in ("1", "56"):
        out = tmp_path / steps
        more = ["--reward-steps", steps, "--reward-rate", "0.02", "--out", str(out)]
        assert main(monkeypatch, *argv, *more) == 0
        record = json.loads((out / "policy.json").read_text())
        assert record["evaluator"] == f"steps={steps}, learning_rate=0.02"
        accuracies[steps] = record["accuracy"]["uniform_search"]
    task = make_task(evaluator=Recipe(steps=56, learning_rate=0.02))
    assert task.evaluate(task.uniform()).accuracy == accuracies["56"] > accuracies["1"]


def test_a_warning_is_one_line_that_names_no_code(tmp_path):
    code = """
import warnings
from haq_env.commands.costs import Cost
from haq_env.cli import main
Cost.run = lambda self: warnings.warn("odd\\nimages", stacklevel=2)
main(["cost", "mobilenet_v2"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "warning: odd images\n")
