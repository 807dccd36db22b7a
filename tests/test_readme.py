"""What the README shows works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from haq_env.cli import main
from haq_env.hardware.load import load_hardware

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
    if "..." in command or command[1] in ("train", "lint") or "NETWORK" in command:
        command = [*command[:2], "--help"]
    status = 0
    try:
        main(command[1:])
    except SystemExit as stop:
        status = stop.code
    assert not status
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", commands("python train_agent.py"), ids=" ".join)
def test_every_command_of_train_agent_has_known_flags(command):
    from train_agent import Settings

    settings = tyro.cli(Settings, args=command[2:])
    assert settings.episodes > 0


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
