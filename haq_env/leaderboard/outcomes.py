"""What came out of a run, as text and back."""

from __future__ import annotations

import json
from dataclasses import astuple

from haq_env.errors import InputError
from haq_env.leaderboard.protocol import Cell, Improvement, Outcome


def outcome_to_json(outcome: Outcome) -> str:
    """Write an outcome, without its cell, in one line of JSON; numbers keep every digit."""
    record = {
        "steps": [astuple(step) for step in outcome.steps],
        "evaluations": outcome.evaluations,
        "charge": outcome.charge,
        "repeats": outcome.repeats,
        "seconds": outcome.seconds,
        "wall": outcome.wall,
        "arithmetic": outcome.arithmetic,
    }
    return json.dumps(record, allow_nan=False)


def outcome_from_json(cell: Cell, text: str) -> Outcome:
    """Read an outcome back.

    Raises:
        InputError: the text is not what `outcome_to_json` writes.
    """
    try:
        record = json.loads(text)
        return Outcome(
            cell,
            tuple(
                Improvement(int(k), str(w), str(a), float(top)) for k, w, a, top in record["steps"]
            ),
            int(record["evaluations"]),
            float(record["charge"]),
            int(record["repeats"]),
            float(record["seconds"]),
            float(record.get("wall", 0)),
            str(record.get("arithmetic", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the outcome of {cell} is damaged ({error!r}).") from error
