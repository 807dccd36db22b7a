"""Curves for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from haq_env.errors import InputError
from haq_env.files import writing
from haq_env.report.runs import Run, check_unique

TAG = "best_so_far"


def write_tensorboard(runs: Sequence[Run], folder: str | Path) -> Path:
    """Write the best so far of each run as scalars: ``tensorboard --logdir FOLDER`` shows them.

    Every run has a folder ``task/method/seed``. A scalar stands at the first evaluation, at each
    that improved, and at the last.

    Args:
        runs: of any methods and tasks.
        folder: is made; must not exist yet, or be empty, as TensorBoard would mix the files.

    Returns:
        The folder.

    Raises:
        InputError: TensorBoard is missing, one run is there twice, a name is no folder's name, or
            the folder cannot be written.
    """
    folder = Path(folder)
    check_unique(runs)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard is not installed: pip install tensorboard.") from error
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: give another folder, or delete this one.")
    for run in runs:
        for name in (run.task, run.method):
            if name in ("", ".", "..") or set(name) & set('/\\:*?"<>|\0'):
                raise InputError(f"{run}: {name!r} cannot be the name of a folder.")
    for run in runs:
        curve = run.best_so_far
        last = len(curve) - 1
        changes = sorted({0, *(int(index) + 1 for index in np.flatnonzero(np.diff(curve))), last})
        with writing(folder):
            place = folder / run.task / run.method / str(run.seed)
            with SummaryWriter(str(place)) as writer:
                for index in changes:
                    writer.add_scalar(
                        TAG, float(curve[index]), index + 1, walltime=0.0, new_style=True
                    )
    return folder
