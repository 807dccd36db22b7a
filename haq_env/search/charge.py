"""What a search computed before its first evaluation, and the file that keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from haq_env.errors import InputError
from haq_env.files import replace_file


class Charge(NamedTuple):
    """What a search computed before its first decision, told in evaluations.

    Searches are compared at equal numbers of evaluations. One that first measures a sensitivity
    table (or learns on another task) would look cheaper than it is, since that is no evaluation.
    Its time is therefore its charge: divided by the time of one evaluation it is a number of
    evaluations, to be added to those of the search. It is never among `len(history)`.

    Attributes:
        seconds: wall clock, 0 or more.
        evaluations: the same time in evaluations: seconds divided by those of one evaluation of
            the uniform policy, timed right afterwards on the same machine.
    """

    seconds: float
    evaluations: float

    def save(self, path: Path) -> None:
        """Write it down, so that a search that goes on later still has it.

        Raises:
            InputError: the file cannot be written.
        """
        replace_file(path, json.dumps(self._asdict()) + "\n")

    @classmethod
    def load(cls, path: Path) -> Charge | None:
        """Read what `save` wrote; None where there is no file.

        Raises:
            InputError: the file is damaged.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            charge = cls(float(found["seconds"]), float(found["evaluations"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error!r}.") from error
        if not np.isfinite(charge).all() or min(charge) < 0:
            raise InputError(f"{path} is damaged: a charge is two numbers, 0 or more.")
        return charge


def charge_file(log: Path) -> Path:
    """Return where the charge of a search is kept: beside its log."""
    return log.with_name(f"{log.stem}.charge.json")
