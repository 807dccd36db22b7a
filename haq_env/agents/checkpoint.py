"""An agent's whole state in one file, so that a resumed run equals an unbroken one.

SB3's own ``load`` re-seeds every generator and leaves the memory out. This writes tensors and
plain numbers only, read back without pickle's power to run code (``weights_only``).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from haq_env.errors import InputError

if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

_MEMORY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_COUNTERS = ("num_timesteps", "_episode_num", "_n_updates")


def save_agent(agent: OffPolicyAlgorithm, path: Path) -> None:
    """Write the state between two episodes; the file is replaced in one step."""
    buffer = agent.replay_buffer
    assert buffer is not None, "off-policy agents have a replay buffer"
    used = buffer.buffer_size if buffer.full else buffer.pos
    state = {
        "parameters": agent.get_parameters(),
        "variables": {name: _at(agent, name).detach() for name in _variables(agent)},
        "counters": {name: int(getattr(agent, name)) for name in _COUNTERS},
        "memory": {name: torch.from_numpy(getattr(buffer, name)[:used]) for name in _MEMORY},
        "memory_position": (int(buffer.pos), bool(buffer.full)),
        "generators": _generators(agent),
    }
    scratch = path.with_name(path.name + ".part")
    torch.save(state, scratch)
    scratch.replace(path)


def load_agent(agent: OffPolicyAlgorithm, path: Path) -> int:
    """Put a saved state into a freshly built agent of the same settings.

    Call `restore_generators` with the same file once training has begun.

    Returns:
        How many episodes the agent had finished.

    Raises:
        InputError: the file is damaged or of an agent with other settings.
    """
    state = _read(path)
    buffer = agent.replay_buffer
    assert buffer is not None, "off-policy agents have a replay buffer"
    try:
        agent.set_parameters(state["parameters"], device="cpu")
        for name, value in state["variables"].items():
            _at(agent, name).data.copy_(value)
        for name, array in state["memory"].items():
            getattr(buffer, name)[: len(array)] = array.numpy()
        buffer.pos, buffer.full = state["memory_position"]
        for name, number in state["counters"].items():
            setattr(agent, name, number)
        state["generators"]  # is needed later
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(":. ") if str(error) else repr(error)
        raise InputError(f"{path} is not of an agent with these settings: {reason}.") from error
    episodes = int(agent._episode_num)
    if agent.action_noise is not None:
        agent.action_noise.start(episodes)  # type: ignore[attr-defined]
    return episodes


def restore_generators(agent: OffPolicyAlgorithm, path: Path) -> None:
    """Put the random generators back to where they were when the file was written."""
    kept = _read(path)["generators"]
    name, words, position, has_gauss, gauss = kept["numpy"]
    np.random.set_state((name, words.numpy(), position, has_gauss, gauss))  # noqa: NPY002  # SB3 uses it
    torch.set_rng_state(kept["torch"])
    agent.action_space.np_random.bit_generator.state = kept["actions"]


def _generators(agent: OffPolicyAlgorithm) -> dict[str, Any]:
    # SB3 draws from numpy's and torch's global generators, and warm-up actions from the space's.
    name, words, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "numpy": (name, torch.from_numpy(np.array(words)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "actions": copy.deepcopy(agent.action_space.np_random.bit_generator.state),
    }


def _variables(agent: OffPolicyAlgorithm) -> list[str]:
    names = agent._get_torch_save_params()[1]  # SAC's entropy coefficient
    return [name for name in names if _at(agent, name) is not None]


def _at(agent: OffPolicyAlgorithm, name: str) -> Any:
    return getattr(agent, name)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"cannot read the agent's state {path}: {error}.") from error
    return state
