"""An agent's whole state in one file, so that a resumed run equals an unbroken one.

SB3's own ``load`` re-seeds every generator and leaves the memory out. This writes tensors and
plain numbers only, read back without pickle's power to run code (``weights_only``).
"""

from __future__ import annotations

import copy
import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from haq_env.agents.noise import FadingNoise
from haq_env.errors import InputError
from haq_env.files import replace_file

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

_MEMORY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_n_calls")  # the last is DQN's


def save_agent(agent: BaseAlgorithm, path: Path) -> None:
    """Write the state between two rollouts; the file is replaced in one step.

    A rollout is one episode of an off-policy agent. What an on-policy agent remembers is used up
    at its end, so there is no memory to be kept.
    """
    state: dict[str, Any] = {
        "parameters": agent.get_parameters(),
        "variables": {name: _at(agent, name).detach() for name in _variables(agent)},
        "counters": {name: int(_at(agent, name)) for name in _COUNTERS if hasattr(agent, name)},
        "generators": _generators(agent),
        "scales": _scales(agent),
    }
    if hasattr(agent, "exploration_rate"):  # DQN computes it after the step that it is used in
        state["exploration_rate"] = float(agent.exploration_rate)
    if hasattr(agent, "carried"):  # HaqDDPG's baseline
        state["carried"] = agent.carried()
    if (buffer := _memory(agent)) is not None:
        used = buffer.buffer_size if buffer.full else buffer.pos
        state["memory"] = {name: torch.from_numpy(getattr(buffer, name)[:used]) for name in _MEMORY}
        state["memory_position"] = (int(buffer.pos), bool(buffer.full))
    content = io.BytesIO()
    torch.save(state, content)
    replace_file(path, content.getbuffer(), durable=False)


def load_agent(agent: BaseAlgorithm, path: Path) -> int:
    """Put a saved state into a freshly built agent of the same settings.

    Call `restore_generators` with the same file once training has begun.

    Returns:
        How many episodes the agent had finished.

    Raises:
        InputError: the file is damaged or of an agent with other settings.
    """
    state = _read(path)
    try:
        agent.set_parameters(state["parameters"], device="cpu")
        for name, value in state["variables"].items():
            _at(agent, name).data.copy_(value)
        for name, number in state["counters"].items():
            setattr(agent, name, number)
        if hasattr(agent, "exploration_rate"):
            agent.exploration_rate = state["exploration_rate"]
        if hasattr(agent, "carry"):
            agent.carry(state["carried"])
        if (buffer := _memory(agent)) is not None:
            for name, array in state["memory"].items():
                getattr(buffer, name)[: len(array)] = array.numpy()
            buffer.pos, buffer.full = state["memory_position"]
        state["generators"]  # is needed later
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(":. ") if str(error) else repr(error)
        raise InputError(f"{path} is not of an agent with these settings: {reason}.") from error
    episodes = int(agent._episode_num)
    if isinstance(noise := getattr(agent, "action_noise", None), FadingNoise):
        noise.start(episodes)
    return episodes


def restore_generators(agent: BaseAlgorithm, path: Path) -> None:
    """Put the random generators back to where they were when the file was written."""
    kept = _read(path)["generators"]
    name, words, position, has_gauss, gauss = kept["numpy"]
    np.random.set_state((name, words.numpy(), position, has_gauss, gauss))  # noqa: NPY002  # SB3 uses it
    torch.set_rng_state(kept["torch"])
    agent.action_space.np_random.bit_generator.state = kept["actions"]


def _generators(agent: BaseAlgorithm) -> dict[str, Any]:
    # SB3 draws from numpy's and torch's global generators, and random actions from the space's.
    name, words, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "numpy": (name, torch.from_numpy(np.array(words)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "actions": copy.deepcopy(agent.action_space.np_random.bit_generator.state),
    }


def load_policy(agent: BaseAlgorithm, path: Path) -> None:
    """Put a saved agent's networks, and nothing else of it, into a freshly built one.

    Raises:
        InputError: the file is damaged or of an agent with other networks.
    """
    try:
        agent.policy.load_state_dict(_read(path)["parameters"]["policy"])
    except (KeyError, RuntimeError, TypeError) as error:
        # torch lists every tensor, below a line that says that it does
        lines = [line.strip().rstrip(":. ") for line in str(error).splitlines()]
        reason = textwrap.shorten(lines[min(1, len(lines) - 1)], 150, placeholder=" ...")
        raise InputError(
            f"{path} is not of an agent with these networks: {reason}. Is it of another algorithm "
            "or kind of environment, or were its bits others?"
        ) from error


def load_scales(path: Path) -> list[list[float]]:
    """Read on which scales a saved agent has seen the layers, see `haq_env.embedding`.

    Raises:
        InputError: the file is damaged.
    """
    state = _read(path)
    try:
        return [[float(number) for number in row] for row in state["scales"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not say on which scales its agent sees layers.") from error


def _scales(agent: BaseAlgorithm) -> list[list[float]]:
    env = agent.get_env()
    assert env is not None, "an agent that is trained has an environment"
    return [list(row) for row in env.get_attr("scales")[0]]


def _memory(agent: BaseAlgorithm) -> Any:
    return getattr(agent, "replay_buffer", None)


def _variables(agent: BaseAlgorithm) -> list[str]:
    names = agent._get_torch_save_params()[1]  # the entropy coefficient of SAC, TQC and CrossQ
    return [name for name in names if _at(agent, name) is not None]


def _at(agent: BaseAlgorithm, name: str) -> Any:
    return getattr(agent, name)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"cannot read the agent's state {path}: {error}.") from error
    return state
