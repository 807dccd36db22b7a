"""What the README shows works as it stands there."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import tyro

import haq_env
from haq_env import QuantizationEnv
from haq_env.cli import main
from haq_env.evaluation.cache import EvaluationCache
from haq_env.evaluation.recipe import FINAL, RECIPES
from haq_env.hardware.load import load_hardware
from haq_env.policy import Policy
from haq_env.residual import ResidualEnv
from haq_env.yardstick import yardstick

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL).replace("\n", " ")
    lines = [line for block in blocks("") for line in re.split(r"[;\n]", block)]
    lines += re.findall(r"`([^`]+)`", text)
    return [shlex.split(line, comments=True) for line in lines if line.strip().startswith(program)]


def test_the_first_python_example_runs_one_episode():
    example = blocks("python")[0]
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True
    )
    assert re.match(r"\[\[8, 8\], \[\d, \d\].* \d+\.\d+ 0\.\d+\n", done.stdout)


NOISE = """
import numpy as np
from torch import nn
from haq_env.data import Dataset, Split


def net():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3)]
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*layers)


def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 1, 12, 12), dtype=np.uint8)
    splits = [Split(part, np.arange(64) % 10) for part in images]
    return Dataset.of("noise", *splits, classes=10, mean=[0.5], std=[0.25])
"""


def executed(example: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_page(name: str, number: int = 0) -> str:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)[number]


@pytest.mark.slow
def test_the_example_of_ones_own_network_and_hardware_finds_a_policy(tmp_path):
    (tmp_path / "mine.py").write_text(NOISE)
    (example,) = [block for block in blocks("python") if "class MyChip" in block]
    out = executed(example.replace("evaluations=31", "evaluations=3"), tmp_path)
    assert re.fullmatch(r"[\d.]+ % uniform, [\d.]+ % found\n[\d.]+ % on test images\n", out)
    assert Policy.load(tmp_path / "policy.json").record["hardware"] == "my chip"


@pytest.mark.slow
def test_the_example_of_ones_own_agent_keeps_its_best_policy(tmp_path):
    example = of_page("agents.md")
    short = example.replace('cache="cache.sqlite"', 'evaluator="ptq_bn"')
    short = short.replace("n_steps=520, batch_size=260", "n_steps=104, batch_size=52")
    executed(short.replace("52 * 300", "52 * 2"), tmp_path)
    assert "n_steps=520" in example
    assert "accuracy" not in Policy.load(tmp_path / "policy.json").record  # measured by its owner


def test_the_example_of_a_search_by_name_prints_what_it_found(tmp_path):
    out = executed(of_page("search.md"), tmp_path)
    assert re.fullmatch(r"[\d.]+ [2-8]{28} Charge\(seconds=0.0, evaluations=0.0\)\n", out)
    assert (tmp_path / "runs" / "mine" / "episodes.csv").exists()


def test_the_example_of_ones_own_search_is_one():
    names: dict = {}
    exec(of_page("search.md", 1), names)
    task = yardstick(0)
    history = names["mine"](task, 40, 0)
    assert len(history) == 40
    assert history.best.accuracy > history[0].accuracy
    assert all(task.budget.fits(trial.bits) for trial in history)


def test_the_example_of_ones_own_agent_as_a_search_is_one():
    names: dict = {}
    exec(of_page("agents.md", 1), names)
    task = yardstick(0)
    history = names["mine"](task, 4, 0)
    assert len(history) == 4
    assert (history[0].bits == task.uniform()).all()
    assert all(task.budget.fits(trial.bits) for trial in history)


@pytest.mark.slow
def test_the_example_of_ones_own_quantizer_is_measured(tmp_path):
    examples = of_page("quantizers.md"), of_page("quantizers.md", 1)
    for found in executed("\n".join(examples), tmp_path).split():
        assert 80 < float(found) < 100


def test_the_tiers_are_those_of_their_page():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    tiers = (RECIPES["finetune"], RECIPES["ptq_bn"], FINAL)
    assert f"| steps | {' | '.join(str(tier.steps) for tier in tiers)} |" in page
    assert (
        f"| training images for batch norm | {' | '.join(str(t.bn_images) for t in tiers)} |"
        in page
    )
    for what in ("batch_size", "learning_rate", "momentum", "weight_decay", "max_norm"):
        assert len({getattr(tier, what) for tier in tiers}) == 1
        value = f"{getattr(FINAL, what):g}".replace("e-05", "e-5")
        value = "1.0" if what == "max_norm" else value
        assert f"| {value} | \u2013 | {value} |" in page


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_every_file_that_a_page_links_exists(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    links = re.findall(
        r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.S)
    )
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_page_of_the_environments_is_what_the_classes_say():
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    for environment in (QuantizationEnv, ResidualEnv):
        assert inspect.cleandoc(environment.__doc__).replace("\n## ", "\n### ") in page


def test_the_toml_example_is_a_machine():
    (example,) = blocks("toml")
    path = ROOT / "tests" / "readme_example.toml"
    try:
        path.write_text(example, encoding="utf-8")
        assert load_hardware(path).clock_hz == 150e6
    finally:
        path.unlink()


@pytest.mark.parametrize("command", commands("haq-env"), ids=" ".join)
def test_every_command_of_haq_env_is_one(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(blocks("toml")[0])
    if command[1] == "cache":
        EvaluationCache(tmp_path / "cache.sqlite").close()
    if "..." in command or command[1] in ("search", "train", "lint") or "NETWORK" in command:
        command = [*command[:2], "--help"]
    status = 0
    try:
        main(command[1:])
    except SystemExit as stop:
        status = stop.code
    assert not status
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [c for c in commands("haq-env") if c[1] == "search"], ids=" ".join
)
def test_every_search_has_known_flags(command):
    from haq_env.commands.search import Search

    if "--help" not in command and "NAME" not in command:
        given = tyro.cli(Search, args=command[2:])
        given.check()
        assert given.env_id in gym.registry


def test_every_training_has_known_flags():
    from haq_env.commands.train import Train

    page = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    shown = [shlex.split(line) for line in page.splitlines() if line.startswith("haq-env train")]
    shown += [c for c in commands("haq-env train") if len(c) > 2]
    assert len(shown) >= 3
    for command in shown:
        assert tyro.cli(Train, args=command[2:]).network


def test_every_file_that_is_linked_exists():
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_public_name_is_there_and_costs_nothing_before_it_is_asked_for():
    code = (
        "import sys, haq_env; before = 'torch' in sys.modules; "
        "found = [getattr(haq_env, name) for name in haq_env.__all__]; "
        "print(before, len(found), set(haq_env.__all__) <= set(dir(haq_env)))"
    )
    out = executed(code, ROOT)
    assert out == f"False {len(haq_env.__all__)} True\n"
