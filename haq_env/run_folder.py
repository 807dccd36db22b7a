"""A search that lives in a folder: what is there, whether it may go on, and the policy file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haq_env.errors import InputError, OccupiedError
from haq_env.files import replace_file
from haq_env.final import Final
from haq_env.policy import Bits
from haq_env.search.folder import BESIDE_A_LOG, LOG, check_same
from haq_env.search.history import History, Trial
from haq_env.task import Task
from haq_env.versions import versions

NETWORK = "network.safetensors"
# what a run must not lose
_FILES = (LOG, *BESIDE_A_LOG, "policy.json", NETWORK)
_PLOTS = ("bits.png", "search.png", "roofline.png", "roofline.svg")


def open_folder(
    folder: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Make a folder ready for a run before any work is done.

    Args:
        folder: where everything is written.
        settings: what decides the run's outcome; they are kept in ``settings.json``.
        resume: the folder holds a run of the same settings that goes on, or no run yet.
        overwrite: a run that is there already may be thrown away.

    Raises:
        OccupiedError: a run is there already, and neither is it resumed nor may it be thrown away.
        InputError: nothing can be written there, both are asked for, or the settings differ from
            those of the run to be resumed.
    """
    if resume and overwrite:
        raise InputError("resume and overwrite contradict each other: take one of them.")
    path, text = folder / "settings.json", json.dumps(dict(settings), indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}.") from error
    # settings alone are of a run that failed before its first evaluation: nothing would be lost
    there = any((folder / name).exists() for name in _FILES)
    if there and not resume and not overwrite:
        raise OccupiedError(
            f"{folder} holds a run already: resume it, overwrite it, or take another folder."
        )
    if resume and (there or path.exists()):
        check_same(path, json.loads(text))
        return
    for name in (*_FILES, *_PLOTS):
        (folder / name).unlink(missing_ok=True)
    replace_file(path, text)


def made_of(task: Task, checkpoint: Path | None) -> dict[str, str]:
    """Return digests of weights and images that are not the package's: a resumed run has the same.

    Args:
        task: what is searched, with an evaluator that finetunes.
        checkpoint: the file that the weights are from, if they were given as one.

    Raises:
        InputError: the evaluator is the user's own.
    """
    import torch

    from haq_env.data import load_dataset
    from haq_env.evaluation.fingerprint import digest, raw

    subject, found = task.trained().subject, {}
    if checkpoint is not None:
        found["weights"] = digest([("file", checkpoint.read_bytes())])
    elif not isinstance(subject.network, str):
        state = subject.network.state_dict().items()
        tensors = [(name, tensor) for name, tensor in state if torch.is_tensor(tensor)]
        found["weights"] = digest(raw(name, tensor) for name, tensor in tensors)
    if subject.dataset != "digits":
        data = load_dataset(subject.dataset, **dict(subject.dataset_options))
        files = data.about.get("sha256")  # of sets too large to be read for this
        found["images"] = data.digest() if files is None else str(sorted(files.items()))
    return found


def save_policy(
    folder: Path,
    task: Task,
    history: History,
    best: Trial,
    finals: Mapping[str, tuple[Bits, Final]],
    about: Mapping[str, Any],
) -> Path:
    """Write ``policy.json``: the chosen policy with everything needed to repeat it."""
    float_accuracy = task.float_accuracy
    record = {
        "accuracy": {
            "float": float_accuracy,
            "search": best.accuracy,
            "uniform_search": history[0].accuracy,
            "final": {name: final.record() for name, (_, final) in finals.items()},
        },
        "evaluations": len(history),
        "charge": None if history.charge is None else history.charge._asdict(),
        **about,
        "versions": versions(),
    }
    path = folder / "policy.json"
    task.policy(best.bits, **record).save(path)
    return path
