"""Runs repeat on another processor if they are told to add as that one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from haq_env.errors import InputError
from haq_env.summation import AVX2, pin, pinned

ROOT = Path(__file__).parent.parent
FLAGS = Path("/proc/cpuinfo")
has_avx2 = pytest.mark.skipif(
    not FLAGS.exists() or " avx2 " not in FLAGS.read_text(), reason="the processor has no AVX2"
)
SEARCH = ("--algo", "sac", "--episodes", "1", "--evaluator", "ptq_bn", "--final-steps", "0")
# what an agent's network of torch's makes of fixed numbers: a digest of all bits
DIGEST = """
import hashlib, torch
torch.set_num_threads(1)
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(11, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
network(torch.randn(256, 11)).square().mean().backward()
print(hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in network.parameters())).hexdigest())
"""


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in AVX2}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment | variables
    )


def search(out: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = ["search", *SEARCH, "--out", str(out), *argv]
    return python(f"from haq_env.cli import main; main({words!r})", **variables)


@has_avx2
def test_pinning_is_what_the_variables_before_a_command_do():
    told = python(DIGEST, **AVX2)
    pinned_itself = python("from haq_env.summation import pin; pin()" + DIGEST)
    assert told.returncode == 0, told.stderr
    assert pinned_itself.stdout == told.stdout


@has_avx2
def test_a_search_says_which_order_it_added_in_and_goes_on_in_no_other(tmp_path):
    done = search(tmp_path / "run", "--arithmetic", "avx2")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["arithmetic"] == "avx2"
    again = search(tmp_path / "run", "--resume")
    assert again.returncode == 2
    assert "arithmetic was 'avx2' and is now None" in again.stderr


@has_avx2
def test_another_order_that_was_asked_for_is_not_overruled(tmp_path):
    done = search(tmp_path / "run", "--arithmetic", "avx2", MKL_CBWR="COMPATIBLE")
    assert done.returncode == 2
    assert done.stderr == "error: MKL_CBWR is COMPATIBLE and must be AVX2, or not set.\n"
    assert not (tmp_path / "run").exists()


def test_it_is_too_late_once_torch_is_loaded(monkeypatch):
    import torch  # noqa: F401

    for name in AVX2:
        monkeypatch.delenv(name, raising=False)
    assert pinned() == {}
    with pytest.raises(InputError, match=r"torch is loaded already|not known to have AVX2"):
        pin()
    assert not [name for name in AVX2 if name in os.environ]
