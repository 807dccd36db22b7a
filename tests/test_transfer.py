"""What an agent has learned on one network, device or budget is used on another one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transfer
from scripts import Done, run_main

from haq_env import make_task
from haq_env.agents.algorithms import ALGORITHMS
from haq_env.agents.transfer import Source, apply_agent
from haq_env.cli import main
from haq_env.embedding import Scales, embed
from haq_env.errors import InputError
from haq_env.make import make_env

TIER = ["--evaluator", "ptq_bn", "--final-steps", "0", "--final-seeds", "1", "--shortlist", "1"]


def train(*argv: str) -> Done:
    return run_main(main, "search", *argv)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learned") / "run"
    argv = ["--env", "HAQ-BISMO-Edge-v0", "--algo", "ppo", "--episodes", "3", "--out", str(folder)]
    done = train(*argv, *TIER)
    assert done.returncode == 0, done.stderr
    return folder


def test_an_agent_decides_on_another_network_without_any_search(learned, tmp_path):
    argv = ["--env", "HAQ-BISMO-Edge-v0", "--algo", "ppo", "--network", "mobilenet_v2"]
    argv += ["--transfer-from", str(learned), "--episodes", "0", "--out", str(tmp_path / "out")]
    done = train(*argv, *TIER)
    assert done.returncode == 0, done.stderr
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert policy["network"] == "mobilenet_v2"
    assert (tmp_path / "out" / "episodes.csv").read_text().count("\n") == 3
    assert policy["evaluations"] == 2  # the uniform policy's and the one that tells how good it is


def test_the_policy_is_the_agents_own_and_not_what_a_fresh_one_would_do(learned):
    source = Source.open(learned)
    env = make_env("HAQ-BISMO-Cloud-v0", evaluator="ptq_bn", scales=source.scales)
    first, again = (apply_agent(source, env)[1] for _ in range(2))
    assert first.w_bits == again.w_bits
    state = torch.load(source.state, weights_only=True)
    for tensor in state["parameters"]["policy"].values():
        tensor.mul_(-3.0)
    torch.save(state, learned / "agent.pt.other")
    other = Source(learned / "agent.pt.other", *list(vars(source).values())[1:])
    assert apply_agent(other, env)[1].requested_w_bits != first.requested_w_bits


def test_a_search_that_starts_warm_plays_its_first_episode_with_what_was_learned(learned, tmp_path):
    argv = ["--env", "HAQ-BISMO-Cloud-v0", "--algo", "ppo", "--episodes", "1"]
    argv += ["--transfer-from", str(learned), "--out", str(tmp_path / "warm")]
    done = train(*argv, *TIER)
    assert done.returncode == 0, done.stderr
    start = torch.load(learned / "agent.pt", weights_only=True)["parameters"]["policy"]
    end = torch.load(tmp_path / "warm" / "agent.pt", weights_only=True)["parameters"]["policy"]
    for name in start:  # one update of Adam at a rate of 5e-3 has moved no weight far
        assert (start[name] - end[name]).abs().max() < 0.2


@pytest.mark.slow
def test_a_run_goes_on_with_the_agent_that_it_began_with_only(learned, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(learned, source)
    argv = ["--env", "HAQ-BISMO-Cloud-v0", "--algo", "ppo", "--episodes", "1"]
    argv += ["--transfer-from", str(source), "--out", str(out)]
    assert train(*argv, *TIER).returncode == 0
    assert train(*argv, *TIER, "--resume").returncode == 0
    state = torch.load(source / "agent.pt", weights_only=True)
    state["scales"][0][0] += 1.0  # the folder holds another agent now
    torch.save(state, source / "agent.pt")
    kept = (out / "episodes.csv").read_bytes()
    done = train(*argv, *TIER, "--resume")
    assert done.returncode == 2
    assert "transferred was" in done.stderr
    assert (out / "episodes.csv").read_bytes() == kept


def test_equal_layers_look_equal_to_an_agent_on_any_network():
    small, large = make_task().layers, make_task(network="mobilenet_v2").layers
    scales = Scales.of(small)
    seen, here = embed(small), embed(large, scales)
    for mine, row in zip(small, seen, strict=True):
        for theirs, other in zip(large, here, strict=True):
            if mine.in_channels == theirs.in_channels:
                assert row[1] == other[1]
    assert ((here >= 0) & (here <= 1)).all()
    assert here[0, 0] == 0
    assert here[-1, 0] == 1  # the position is the network's own


def test_scales_are_kept_with_the_agent(learned):
    source = Source.open(learned)
    assert Scales.read(source.scales) == Scales.of(make_task().layers)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--algo", "sac"], "is ppo, not sac"),
        (
            ["--env", "HAQ-BISMO-Edge-Residual-v0", "--algo", "ppo"],
            "observations or actions differ",
        ),
        (["--algo", "ppo", "--episodes", "-1"], "episodes must be"),
    ],
)
def test_what_does_not_fit_is_one_clear_error_before_any_evaluation(
    learned, tmp_path, argv, complaint
):
    out = tmp_path / "out"
    given = ["--transfer-from", str(learned), "--episodes", "0", "--out", str(out)]
    done = train(*given, *argv)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (out / "episodes.csv").exists()


def test_an_agent_of_haq_decides_by_the_rules_that_it_has_learned_with(tmp_path):
    first = ["--algo", "haq-ddpg", "--haq", "released", "--episodes", "1"]
    done = train(*first, "--out", str(tmp_path / "first"), *TIER)
    assert done.returncode == 0, done.stderr
    argv = ["--algo", "haq-ddpg", "--transfer-from", str(tmp_path / "first"), "--episodes", "0"]
    done = train(*argv, "--out", str(tmp_path / "second"), *TIER)
    assert done.returncode == 2
    assert "has learned with --haq released: give that, not --haq paper" in done.stderr


def test_no_episodes_without_an_agent_is_an_error(tmp_path):
    done = train("--episodes", "0", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "episodes must be 1 or more" in done.stderr


def test_a_folder_without_an_agent_and_a_damaged_one_are_clear_errors(learned, tmp_path):
    with pytest.raises(InputError, match="holds no trained agent"):
        Source.open(tmp_path)
    (tmp_path / "settings.json").write_text((learned / "settings.json").read_text())
    (tmp_path / "agent.pt").write_bytes((learned / "agent.pt").read_bytes()[:500])
    with pytest.raises(InputError, match="cannot read the agent's state"):
        Source.open(tmp_path)


def test_networks_of_other_sizes_are_a_clear_error(learned):
    source = Source.open(learned)
    env = make_env("HAQ-BISMO-Edge-v0", evaluator="ptq_bn", scales=source.scales)
    with pytest.raises(InputError, match="not of an agent with these networks") as caught:
        apply_agent(source, env, {"policy_kwargs": {"net_arch": [7]}})
    assert "were its bits others" in str(caught.value)
    assert len(str(caught.value).replace(str(source.state), "")) < 320  # torch lists every tensor


@pytest.mark.parametrize("scales", [[[0.0] * 8], [[0.0] * 7, [1.0] * 7], [["x"] * 8, [1.0] * 8]])
def test_scales_that_are_none_are_a_clear_error(scales):
    with pytest.raises(InputError, match="scales must be two lists"):
        make_env("HAQ-BISMO-Edge-v0", scales=scales)


@pytest.mark.slow
def test_every_algorithm_can_be_transferred(tmp_path):
    from haq_env.agents.run import search_with_agent

    for name, how in ALGORITHMS.items():
        suffix = "-Discrete" if how.actions == "discrete" else ""
        env = make_env(f"HAQ-BISMO-Edge{suffix}-v0", evaluator="ptq_bn")
        folder = tmp_path / name
        folder.mkdir()
        search_with_agent(env, name, 1, 0, folder=folder)
        record = {"env": f"HAQ-BISMO-Edge{suffix}-v0", "algo": name}
        (folder / "settings.json").write_text(json.dumps(record))
        source = Source.open(folder)
        target = make_env(f"HAQ-BitFusion{suffix}-v0", evaluator="ptq_bn", scales=source.scales)
        source.check(name, target)
        found = apply_agent(source, target)[1]
        assert target.task.budget.fits(np.array(found.bits))


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "does not say what its agent has learned on"),
        (["--seeds"], "seeds: at least one is needed"),
        (["--sources"], "sources: at least one is needed"),
    ],
)
def test_the_benchmark_takes_no_agent_of_unknown_origin_and_not_nothing(argv, complaint, tmp_path):
    folder = tmp_path / "HAQ-BISMO-Edge-Residual-v0-ppo-300-0"
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    done = run_main(transfer.main, "--out", str(tmp_path), *argv)
    assert done.returncode == 2
    assert complaint in done.stderr
