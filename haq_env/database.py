"""A SQLite file that many processes use at once, and that outlives any of them being killed."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from haq_env.errors import InputError

APPLICATION = 0x48415145  # "HAQE" in a file's header: whose file it is
PATIENCE = 30.0  # seconds to wait for other processes, whose transactions take milliseconds

_FRESH = (0, 0, 0)  # application, version and number of tables of an empty file
_Answer = TypeVar("_Answer")


class Database:
    """One SQLite file and the one table in it.

    The file is in write-ahead-log mode, where readers and the one writer do not wait for each
    other. Every commit is synced to the disk (``synchronous=FULL``): it takes milliseconds more,
    and what was committed survives a power failure too, not only a kill.

    The connection is opened when it is needed. Copies and pickles go without it, and it is closed
    before a fork.

    Args:
        path: the file; it and its folder are made if missing. Not on a network drive, whose
            locks SQLite cannot rely on.
        what: what the file is, for error messages ("evaluation cache").
        table: the statement that makes the table.
        schema: version of the table, 1 or more.
        later: columns that the table has got since, name to definition. A file that lacks one gets
            it when it is opened with ``create``; programs that know nothing of it go on using the
            file, so the version stays.
        create: False only looks into a file that must be there.
        application: what a file's header says, so that no kind of file is taken for another.

    Raises:
        InputError: the file cannot be opened or written, or is not one of these.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        what: str,
        table: str,
        schema: int,
        *,
        later: Mapping[str, str] | None = None,
        create: bool = True,
        application: int = APPLICATION,
    ) -> None:
        self._connection: sqlite3.Connection | None = None
        self._later = dict(later or {})
        self._what, self._table, self._schema, self._create = what, table, schema, create
        self._application = application
        self.path = Path(path).absolute()  # a copy may live in a process elsewhere
        if not create and not self.path.is_file():
            raise InputError(f"there is no {what} {path}.")
        try:
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self.do(_try_to_write if create else _nothing)
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"the {what} {path} cannot be used: {reason}.") from error

    def do(self, action: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Do something that may be done twice, and wait for other processes meanwhile.

        SQLite waits by itself, but not everywhere: changing to the write-ahead log and recovering
        it after a crash can fail at once.

        Raises:
            sqlite3.Error: it cannot be done.
            InputError: the file has become another one.
        """
        deadline = time.monotonic() + PATIENCE
        with _LOCK:
            while True:
                try:
                    if self._connection is None:
                        self._connection = self._open()
                    return action(self._connection)
                except sqlite3.Error as error:
                    self._drop()
                    if "lock" not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)

    def size(self) -> int:
        """Return how many bytes the file takes, with its write-ahead log."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with _LOCK:
            self._drop()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=PATIENCE / 4, isolation_level=None, check_same_thread=False
        )
        try:
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        _OPEN.add(self)
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """See that it is our file, without a change to anybody else's; fill an empty one."""
        state = _state(connection)
        if state == _FRESH and self._create:
            connection.execute("PRAGMA journal_mode = WAL")
            self._fill(connection)
            state = _state(connection)
        application, version, _ = state
        if application != self._application:
            raise InputError(f"{self.path} is no {self._what}: another program made it.")
        if version != self._schema:
            what = f"{'an' if self._what[0] in 'aeiou' else 'a'} {self._what}"
            raise InputError(
                f"{self.path} is {what} of version {version}, and this haq-env reads "
                f"version {self._schema}: give another file, or delete this one."
            )
        connection.execute("PRAGMA synchronous = FULL")
        if self._create and self._missing(connection):
            self._widen(connection)

    def _fill(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if _read_state(connection) == _FRESH:  # no other process was faster
            connection.execute(self._table)
            connection.execute(f"PRAGMA application_id = {self._application}")
            connection.execute(f"PRAGMA user_version = {self._schema}")
        connection.execute("COMMIT")

    def _missing(self, connection: sqlite3.Connection) -> list[str]:
        """Return statements that add the columns that an earlier program did not know."""
        query = "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c"
        there = connection.execute(query).fetchall()
        names = {name for _, name in there}
        return [
            f"ALTER TABLE {there[0][0]} ADD COLUMN {name} {definition}"
            for name, definition in self._later.items()
            if there and name not in names
        ]

    def _widen(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for statement in self._missing(connection):  # no other process was faster
            connection.execute(statement)
        connection.execute("COMMIT")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}

    def __del__(self) -> None:
        self._drop()


def _state(connection: sqlite3.Connection) -> tuple[int, ...]:
    """Return application, version and number of tables at one moment."""
    connection.execute("BEGIN")
    state = _read_state(connection)
    connection.execute("COMMIT")
    return state


def _read_state(connection: sqlite3.Connection) -> tuple[int, ...]:
    queries = ("PRAGMA application_id", "PRAGMA user_version", "SELECT COUNT(*) FROM sqlite_master")
    return tuple(int(connection.execute(query).fetchone()[0]) for query in queries)


def _try_to_write(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")


def _nothing(_: sqlite3.Connection) -> None:
    """Only open the file."""


# -- forks -------------------------------------------------------------------------------------
# Not only a connection must not cross a fork: while one is open, SQLite believes that the process
# holds its locks, which a child does not inherit, and a connection that the child opens itself
# would rely on them. So all are closed before.

_LOCK = threading.Lock()  # nobody is in the middle of something when they are closed
_OPEN: weakref.WeakSet[Database] = weakref.WeakSet()


def _before_fork() -> None:
    _LOCK.acquire()
    for database in list(_OPEN):
        database._drop()


if hasattr(os, "register_at_fork"):  # elsewhere nothing forks
    os.register_at_fork(
        before=_before_fork, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
    )
