"""Answers of an evaluator in one SQLite file, for all searches and processes that come later.

An evaluation takes from a tenth of a second to minutes, and its answer never changes. Every answer
is a row, found by a digest of everything that decides it; what else is in the row is for people.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple, TypeVar

from haq_env.database import Database
from haq_env.errors import InputError, unknown_name
from haq_env.policy import Bits, to_digits

SCHEMA = 1  # version of the table; the answers have one of their own, which is in the key

_TABLE = """
CREATE TABLE evaluations (
    key TEXT PRIMARY KEY,
    accuracy REAL NOT NULL,
    network TEXT NOT NULL,
    dataset TEXT NOT NULL,
    quantizer TEXT NOT NULL,
    recipe TEXT NOT NULL,
    seed TEXT NOT NULL,
    w_bits TEXT NOT NULL,
    a_bits TEXT NOT NULL,
    seconds REAL NOT NULL,
    created TEXT NOT NULL
) WITHOUT ROWID
"""
_Answer = TypeVar("_Answer")


class Origin(NamedTuple):
    """Where answers come from, in words that people know.

    Attributes:
        network: its name.
        dataset: its name.
        quantizer: its name, with the clip rule if that is not the default.
        recipe: name of the tier, or what the recipe says.
        seed: of the finetuning; as text, since Python's integers have no limit.
    """

    network: str
    dataset: str
    quantizer: str
    recipe: str
    seed: str


class Group(NamedTuple):
    """The answers of one origin.

    Attributes:
        origin: where they come from.
        entries: how many there are.
        seconds: what computing them took, which is saved every time they are all found again.
        newest: when the last one was computed, ISO 8601, UTC.
    """

    origin: Origin
    entries: int
    seconds: float
    newest: str


class EvaluationCache:
    """Accuracies by key, in a file that many processes may use at once.

    Once a search runs, nothing that happens to the file ends it: a failure is one warning, and
    evaluations are computed as if there were no cache.

    Args:
        path: the SQLite file, see `haq_env.database.Database`.
        create: False only looks into a file that must be there.

    Raises:
        InputError: the file cannot be opened or written, or is no evaluation cache of this version.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self._file = Database(path, "evaluation cache", _TABLE, SCHEMA, create=create)
        self._warned = False

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def get(self, key: str) -> float | None:
        """Return the accuracy in percent that is kept under a key; None if there is none."""
        return self._try(lambda connection: _accuracy(connection, key))

    def put(self, key: str, accuracy: float, seconds: float, bits: Bits, origin: Origin) -> float:
        """Keep an answer; it is on the disk when this returns.

        Args:
            key: digest of everything that decides the answer.
            accuracy: the answer, in percent.
            seconds: what computing it took.
            bits: the policy, int64 [L, 2].
            origin: where it comes from.

        Returns:
            The accuracy under this key from now on. The first answer stays: where another process
            was faster, it is that one's.
        """
        row = (key, accuracy, *origin, *to_digits(bits), seconds, _stamp(0.0))

        def insert(connection: sqlite3.Connection) -> float | None:
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT OR IGNORE INTO evaluations VALUES ({marks})", row)
            return _accuracy(connection, key)

        kept = self._try(insert)
        return accuracy if kept is None else kept

    def groups(self) -> list[Group]:
        """Count what there is, by origin; raises InputError if the file is damaged."""
        names = ", ".join(Origin._fields)
        rows = self._must(
            lambda connection: connection.execute(
                f"SELECT {names}, COUNT(*), SUM(seconds), MAX(created) "
                f"FROM evaluations GROUP BY {names} ORDER BY {names}"
            ).fetchall()
        )
        width = len(Origin._fields)
        return [Group(Origin(*row[:width]), *row[width:]) for row in rows]

    def prune(
        self, *, older_than: float = 0.0, network: str | None = None, dry_run: bool = False
    ) -> int:
        """Drop answers.

        Args:
            older_than: only those computed at least so many days ago, 0 to 100,000.
            network: only those of this network.
            dry_run: count them and change nothing.

        Returns:
            How many.

        Raises:
            InputError: no such network or number of days, or the file cannot be written.
        """
        if not 0 <= older_than <= 100_000:
            raise InputError(f"older_than must be 0 to 100,000 days, not {older_than:g}.")
        known = {group.origin.network for group in self.groups()}
        if network is not None and known and network not in known:
            raise unknown_name(f"network in {self.path}", network, known)
        where = "FROM evaluations WHERE created <= ? AND (? IS NULL OR network = ?)"
        values = (_stamp(older_than), network, network)
        if dry_run:
            count = f"SELECT COUNT(*) {where}"
            return int(self._must(lambda found: found.execute(count, values).fetchone()[0]))
        dropped = self._must(lambda found: found.execute(f"DELETE {where}", values).rowcount)
        # giving the space back is a favour, and takes some space first
        self._try(lambda connection: connection.execute("VACUUM").fetchall())
        self._try(lambda found: found.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        return dropped

    def size(self) -> int:
        """Return how many bytes the file takes."""
        return self._file.size()

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        self._file.close()

    def _try(self, action: Callable[[sqlite3.Connection], _Answer]) -> _Answer | None:
        """Do something that a search can go on without."""
        try:
            return self._file.do(action)
        except (sqlite3.Error, InputError) as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the evaluation cache {self.path} fails ({error}); the search goes on, but "
                    "from now on answers may be neither found nor kept.",
                    RuntimeWarning,
                    stacklevel=4,  # whoever asked for an evaluation
                )
            return None

    def _must(self, action: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        try:
            return self._file.do(action)
        except sqlite3.Error as error:
            raise InputError(f"the evaluation cache {self.path} fails: {error}.") from error


def _accuracy(connection: sqlite3.Connection, key: str) -> float | None:
    query = "SELECT accuracy FROM evaluations WHERE key = ?"
    row = connection.execute(query, (key,)).fetchone()
    return None if row is None else float(row[0])


def _stamp(days_ago: float) -> str:
    """Return a moment as text whose alphabetical order is that of time, ISO 8601, UTC."""
    moment = datetime.now(timezone.utc) - timedelta(days=days_ago)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
