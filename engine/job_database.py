"""The file that a folder's queue of jobs is in: SQLite with a write-ahead log.

Several processes of one host may use it at once. Not of several hosts: the log needs memory that
all of them share, and so does not work on network file systems.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.errors import EngineError, RequestError

_VERSION = 2
_WAIT_FOR_OTHERS_S = 30.0
_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    position INTEGER NOT NULL,
    output TEXT NOT NULL,
    engine TEXT NOT NULL,
    request TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued',
    claims INTEGER NOT NULL DEFAULT 0,
    faults INTEGER NOT NULL DEFAULT 0,
    fault_step INTEGER NOT NULL DEFAULT -1,
    not_before REAL NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0,
    sparing INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    lease_until REAL NOT NULL DEFAULT 0,
    phase TEXT NOT NULL DEFAULT '',
    steps_done INTEGER NOT NULL DEFAULT 0,
    queued_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    seconds TEXT NOT NULL DEFAULT '{}',
    error TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '',
    deleted INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX by_state ON jobs (state, position);
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    job TEXT NOT NULL,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX by_job ON events (job, number);
"""
_FROM_VERSION = {
    1: """
ALTER TABLE jobs ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0
""",
}
"""What brings a file of an earlier version to the next one."""


class JobDatabase:
    """The tables of jobs and of what happened to them. Threads may share one.

    Args:
        path: of the file; it is made if it is not there, in a folder that is.

    Raises:
        RequestError: it is damaged or of another version.
        EngineError: it cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._speaking():
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}",
                uri=True,
                timeout=_WAIT_FOR_OTHERS_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.row_factory = sqlite3.Row
            if not read_only:
                self._set_up()
        with self.reading() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not (version == _VERSION or (read_only and version in _FROM_VERSION)):
            raise RequestError(
                f"{path} is of another version of longtake ({version}, not {_VERSION}): name "
                "another folder"
            )

    def _set_up(self) -> None:
        deadline = time.monotonic() + _WAIT_FOR_OTHERS_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:  # SQLite does not wait for others here
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._connection.execute("PRAGMA synchronous = FULL")  # a power cut loses nothing
        with self.transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            while version < _VERSION and (version == 0 or version in _FROM_VERSION):
                changes = _SCHEMA if version == 0 else _FROM_VERSION[version]
                for statement in filter(str.strip, changes.split(";")):
                    connection.execute(statement)
                version = version + 1 if version else _VERSION
                connection.execute(f"PRAGMA user_version = {version}")

    def close(self) -> None:
        """Let go of the file."""
        with self._speaking():
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, and alone meanwhile; one within another is part of it."""
        with self.reading() as connection:
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone."""
        with self._lock, self._speaking():
            yield self._connection

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """SQLite's errors in one line, and a way out."""
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise EngineError(f"{self.path} was closed: the batch is ending") from error
        except sqlite3.OperationalError as error:
            way_out = "free some space, or see who holds it"
            if "readonly" in str(error) or "unable to open" in str(error):
                way_out = "make its folder writable"
            raise EngineError(
                f"{self.path} cannot be used ({error}): {way_out}; what is rendered is kept, and "
                "the same command goes on"
            ) from error
        except sqlite3.DatabaseError as error:
            raise RequestError(
                f"{self.path} is damaged ({error}): move {self.path.parent} away; what is rendered "
                "stays, and is known by its .json"
            ) from error
