"""The runs of a sweep in one SQLite file: what waits, what runs, what is done, what failed.

Many processes may use a store at once, and any of them may be killed at any moment. A run belongs
to one sweep at a time; that of a dead sweep goes to the next one that asks.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from haq_env.database import Database
from haq_env.errors import InputError
from haq_env.leaderboard.outcomes import outcome_from_json, outcome_to_json
from haq_env.leaderboard.owner import Owner
from haq_env.leaderboard.protocol import VERSION, Cell, Outcome

FILE = "store.sqlite"  # inside a store's folder
CACHE = "cache.sqlite"  # the evaluations beside it
APPLICATION = 0x4841514C  # "HAQL" in the file's header
SCHEMA = 1  # version of the table; the protocol's is part of the file's version, too
ATTEMPTS = 3  # of a run, the first one included
DEATHS = 10  # of processes in the middle of a run, after which the run is what kills them

State = Literal["waiting", "running", "done", "failed"]

_TABLE = """
CREATE TABLE cells (
    track TEXT NOT NULL,
    method TEXT NOT NULL,
    seed INTEGER NOT NULL,
    evaluations INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    machine TEXT,
    pid INTEGER,
    started TEXT,
    beat REAL,
    error TEXT NOT NULL DEFAULT '',
    outcome TEXT,
    CHECK ((state = 'done') = (outcome IS NOT NULL)),
    CHECK ((state = 'running') = (owner IS NOT NULL)),
    PRIMARY KEY (track, method, seed, evaluations)
) WITHOUT ROWID
"""
_LATER = {"deaths": "INTEGER NOT NULL DEFAULT 0"}  # stores of before have none
_KEY = "track = ? AND method = ? AND seed = ? AND evaluations = ?"
_KILLER = "{} processes died in the middle of it: it may take more memory than there is."
_FREE = "owner = NULL, machine = NULL, pid = NULL, started = NULL, beat = NULL"
_MINE = f"{_KEY} AND owner = ? AND state = 'running'"
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class StoredRun:
    """What a store says of one run.

    Attributes:
        cell: the run.
        state: ``"waiting"``, ``"running"``, ``"done"`` or ``"failed"``.
        attempts: how often it was begun.
        error: why the last attempt failed, or why there is none any more; empty if none has.
        outcome: of a run that is done.
    """

    cell: Cell
    state: State
    attempts: int
    error: str
    outcome: Outcome | None


class Store:
    """A folder with a file of runs, and with the cache of their evaluations.

    Args:
        folder: made if missing. Not on a network drive, see `haq_env.database.Database`.
        create: False only looks into a store that must be there.

    Raises:
        InputError: the store cannot be opened or written, or is of another version.
    """

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = True) -> None:
        self.folder = Path(folder).absolute()
        version = 1000 * VERSION + SCHEMA
        self._file = Database(
            self.folder / FILE,
            "leaderboard store",
            _TABLE,
            version,
            later=_LATER,
            create=create,
            application=APPLICATION,
        )

    def add(self, cells: Iterable[Cell]) -> int:
        """Put in runs that are not there yet, to wait; return how many are new."""
        keys = [astuple(cell) for cell in cells]

        def insert(connection: sqlite3.Connection) -> int:
            columns = "(track, method, seed, evaluations)"
            statement = f"INSERT OR IGNORE INTO cells {columns} VALUES (?, ?, ?, ?)"
            return connection.executemany(statement, keys).rowcount if keys else 0

        return self._change(insert)

    def claim(self, owner: Owner, among: Sequence[Cell]) -> Cell | None:
        """Take the first of some runs that waits, or whose owner is dead.

        From now on it is the owner's, and counts as one more attempt. One whose owner has died goes
        on with the attempt that it was in, since a kill is seldom the run's fault; but one in the
        middle of which so many have died as `DEATHS` says is failed, and not taken.

        Returns:
            The run; None if there is nothing to take now.
        """
        query = (
            "SELECT track, method, seed, evaluations, state, attempts, deaths, "
            "owner, machine, pid, started, beat FROM cells WHERE state IN ('waiting', 'running')"
        )

        def take(connection: sqlite3.Connection) -> Cell | None:
            rows = {Cell(*row[:4]): row[4:] for row in connection.execute(query)}
            for cell in among:
                if cell not in rows:
                    continue
                state, attempts, deaths, *about = rows[cell]
                if state == "running":
                    if about[0] == owner.token or not Owner(*about).gone():
                        continue
                    deaths += 1
                    if deaths >= DEATHS:
                        what = f"state = 'failed', error = ?, deaths = ?, {_FREE}"
                        _set(connection, cell, what, _KILLER.format(deaths), deaths)
                        continue
                else:
                    attempts += 1
                _set(
                    connection,
                    cell,
                    "state = 'running', attempts = ?, deaths = ?, "
                    "owner = ?, machine = ?, pid = ?, started = ?, beat = ?",
                    *(attempts, deaths),
                    *(owner.token, owner.machine, owner.pid, owner.started, time.time()),
                )
                return cell
            return None

        return self._change(take)

    def beat(self, owner: Owner) -> None:
        """Give a sign of life for all runs of an owner."""
        statement = "UPDATE cells SET beat = ? WHERE owner = ?"
        self._change(lambda found: found.execute(statement, (time.time(), owner.token)))

    def finish(self, owner: Owner, outcome: Outcome) -> bool:
        """Keep what came out of a run; it is on the disk when this returns.

        Returns:
            False if the run is not the owner's any more, because it seemed dead; nothing is
            changed then.
        """
        statement = f"UPDATE cells SET state = 'done', outcome = ?, error = '', {_FREE} "
        values = (outcome_to_json(outcome), *astuple(outcome.cell), owner.token)
        return self._change(
            lambda found: found.execute(f"{statement} WHERE {_MINE}", values).rowcount == 1
        )

    def fail(self, owner: Owner, cell: Cell, error: str) -> State | None:
        """Write down why an attempt failed, and let the run wait for the next one, if there is one.

        Returns:
            ``"waiting"``, or ``"failed"`` if that was the last attempt; None if the run is not
            the owner's any more.
        """

        def note(connection: sqlite3.Connection) -> State | None:
            query = f"SELECT attempts FROM cells WHERE {_MINE}"
            row = connection.execute(query, (*astuple(cell), owner.token)).fetchone()
            if row is None:
                return None
            state: State = "waiting" if row[0] < ATTEMPTS else "failed"
            _set(connection, cell, f"state = ?, error = ?, {_FREE}", state, error)
            return state

        return self._change(note)

    def release(self, owner: Owner) -> int:
        """Give back all runs of an owner that stops in good order: no attempt is counted."""
        statement = (
            f"UPDATE cells SET state = 'waiting', attempts = attempts - 1, {_FREE} WHERE owner = ?"
        )
        return self._change(lambda found: found.execute(statement, (owner.token,)).rowcount)

    def retry(self, cells: Iterable[Cell]) -> int:
        """Let failed runs wait again, as if none had been begun; return how many."""
        statement = f"UPDATE cells SET state = 'waiting', attempts = 0, deaths = 0 WHERE {_KEY}"
        keys = [astuple(cell) for cell in cells]
        return self._change(
            lambda found: sum(
                found.execute(f"{statement} AND state = 'failed'", key).rowcount for key in keys
            )
        )

    def rows(self) -> list[StoredRun]:
        """Return all runs, in alphabetical order of track and method."""
        query = (
            "SELECT track, method, seed, evaluations, state, attempts, error, outcome "
            "FROM cells ORDER BY track, method, seed, evaluations"
        )
        found = self._do(lambda connection: connection.execute(query).fetchall())
        return [_stored_run(*row) for row in found]

    def outcomes(self) -> list[Outcome]:
        """Return what came out of the runs that are done, in the order of `rows`."""
        return [row.outcome for row in self.rows() if row.outcome is not None]

    def count(self, cells: Iterable[Cell]) -> Counter[State]:
        """Count runs by their state."""
        query = "SELECT track, method, seed, evaluations, state FROM cells"
        wanted = set(cells)
        found = self._do(lambda connection: connection.execute(query).fetchall())
        return Counter(state for *key, state in found if Cell(*key) in wanted)

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        self._file.close()

    def _change(self, action: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Do something that only happens as a whole."""

        def whole(connection: sqlite3.Connection) -> _Answer:
            with _transaction(connection):
                return action(connection)

        return self._do(whole)

    def _do(self, action: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        try:
            return self._file.do(action)
        except sqlite3.Error as error:
            raise InputError(
                f"the leaderboard store {self._file.path} fails: {error}. What it holds is kept."
            ) from error


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _set(connection: sqlite3.Connection, cell: Cell, what: str, *values: Any) -> None:
    connection.execute(f"UPDATE cells SET {what} WHERE {_KEY}", (*values, *astuple(cell)))


def _stored_run(*values: Any) -> StoredRun:
    *key, state, attempts, error, text = values
    cell = Cell(*key)
    outcome = None if text is None else outcome_from_json(cell, text)
    return StoredRun(cell, state, attempts, error, outcome)
