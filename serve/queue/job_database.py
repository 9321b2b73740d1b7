"""The queue's file: an SQLite database with a write-ahead log.

Several processes of one host may use it at once. Several hosts may not: the log needs shared
memory, so it does not work on network file systems.

Readers have their own connections and never wait for a writer. SQLite keeps using a file that was
deleted or moved, so each access checks that the path still names the opened file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from longtake.errors import EngineError, RequestError, one_line
from longtake.serve.queue.job_tables import FROM_VERSION, VERSION, WAL_SUFFIXES, create_file

_RETRY_S = 0.5
_READER_BUSY_S = 1.0
"""Covers the moments in which another process recovers the log."""
_MAX_CHECK_SHARE = 0.02
"""Maximum fraction of time spent on checking the whole file."""
_SYSTEM_ERRORS = ("full", "readonly", "unable to open", "disk I/O error", "out of memory")
"""Parts of SQLite's messages for system errors, as opposed to a damaged file."""


class QueueError(EngineError):
    """The queue is unusable at the moment.

    Attributes:
        summary: Message for clients of a server; contains no path.
    """

    summary = "the queue cannot be written to"


class QueueBusyError(QueueError):
    """Another process has held the write lock for too long."""

    summary = "another process is writing to the queue"


class QueueLostError(QueueError):
    """The queue's file is gone, was replaced, or is damaged."""

    summary = "the queue's file is gone, was replaced, or is damaged"


class JobDatabase:
    """The database of jobs and events. Thread-safe.

    Args:
        path: Path of the file.
        read: Reads everything that must be readable, to detect damage.
        create: Whether to create a missing file; its folder must exist.
        read_only: Whether to open the file without changing it.
        busy_s: Seconds to wait for other writers.
        retry_until: Until this event is set, transactions that allow it wait while the file is
            unusable; None: they fail at once.

    Raises:
        RequestError: The file is damaged or of another version.
        EngineError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        read: Callable[[sqlite3.Connection], object],
        *,
        create: bool = False,
        read_only: bool = False,
        busy_s: float = 30.0,
        retry_until: threading.Event | None = None,
    ) -> None:
        self.path = path
        self._read = read
        self._read_only = read_only
        self._busy_s = busy_s
        self._retry_until = retry_until
        self._lock = threading.RLock()
        self._readers: list[sqlite3.Connection] = []
        self._closed = False
        self._opened: dict[Path, tuple[int, int]] = {}
        self._damage = ""
        self._examined: tuple[int, int] | None = None
        self._size_bytes = 0
        self._next_check_at = 0.0
        self._busy_at = 0.0
        self._write_failed = False
        if create:
            create_file(path)
        try:
            with self._translated_errors():
                self._open()
        except QueueLostError as error:
            raise RequestError(str(error)) from error

    def _open(self) -> None:
        if _stat(self.path).st_size == 0:  # SQLite would treat it as a new database
            raise sqlite3.DatabaseError("it is empty")
        if self._read_only:
            with self.reading() as reader:
                self._check_version(reader, 1)
            return
        self._connection = self._connect("rw", self._busy_s)
        self._set_up()
        self._check_version(self._connection, VERSION)
        files = [self.path, *(Path(f"{self.path}{suffix}") for suffix in WAL_SUFFIXES)]
        self._opened = {file: _identity(file) for file in files}
        self.check()

    def _connect(self, mode: str, busy_s: float) -> sqlite3.Connection:
        path = self.path.absolute()
        if self._read_only and not os.access(path.parent, os.W_OK):
            if not os.path.exists(f"{path}{WAL_SUFFIXES[0]}"):  # which SQLite could not create
                mode += "&immutable=1"
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}",
            uri=True,
            timeout=busy_s,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _set_up(self) -> None:
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:  # the busy timeout does not apply here
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._connection.execute("PRAGMA synchronous = FULL")  # a power cut loses nothing
        with self._exclusive():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            while version in FROM_VERSION:
                for statement in filter(str.strip, FROM_VERSION[version].split(";")):
                    self._connection.execute(statement)
                version += 1
                self._connection.execute(f"PRAGMA user_version = {version}")

    def _check_version(self, connection: sqlite3.Connection, oldest: int) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not oldest <= version <= VERSION:
            raise RequestError(
                f"{self.path} is of another version of longtake ({version}, not {VERSION}): name "
                "another folder"
            )

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        with self._lock, self._translated_errors():
            self._close_readers()
            if not self._read_only:
                self._connection.close()

    def _close_readers(self) -> None:
        while self._readers:
            self._readers.pop().close()

    @contextmanager
    def transaction(
        self, waits_for: type[QueueError] | tuple[()] = ()
    ) -> Iterator[sqlite3.Connection]:
        """An exclusive write transaction. A nested one joins the outer one.

        Args:
            waits_for: Errors after which beginning is retried, if the database retries.

        Raises:
            QueueError: The transaction was not, or may not have been, committed.
        """
        with ExitStack() as opened:
            while True:
                try:
                    connection = opened.enter_context(self._transaction())
                    break
                except waits_for:
                    if self._retry_until is None or self._retry_until.wait(_RETRY_S):
                        raise
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        begun = time.monotonic()
        with self._lock, self._translated_errors():
            if self._connection.in_transaction:
                yield self._connection
                return
            if self._busy_at > begun:  # another thread has just timed out
                raise sqlite3.OperationalError("database is locked")
            self._check_usable()
            self._check_writable()
            if _stamp(self.path) != self._examined:
                self._examine()
            with self._exclusive():
                yield self._connection
            self._check_usable()
            self._write_failed = False

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk may have ended it
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection for the calling thread.

        Raises:
            QueueError: The file cannot be read.
        """
        with self._translated_errors():
            if self._closed:
                raise sqlite3.ProgrammingError
            self._check_usable()
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = self._connect("ro", _READER_BUSY_S)
            try:
                yield reader
            finally:
                self._readers.append(reader)
                if self._closed:
                    self._close_readers()

    def check(self) -> None:
        """Check that the file is the opened one, intact, and writable.

        The content is read after a change by another process, and otherwise so rarely that it takes
        a small fraction of the time.

        Raises:
            QueueError: The file is unusable.
        """
        with self._translated_errors():
            self._check_identity()
            if time.monotonic() >= self._next_check_at or _stamp(self.path) != self._examined:
                begun = time.monotonic()
                try:
                    self._examine(self._read)
                    self._damage = ""
                finally:
                    ended = time.monotonic()
                    self._next_check_at = ended + (ended - begun) / _MAX_CHECK_SHARE
            self._check_usable()
            self._check_writable()
            self._checkpoint()
            if self._write_failed:
                with self.transaction() as writer:
                    writer.execute(f"PRAGMA user_version = {VERSION}")

    def _examine(self, read: Callable[[sqlite3.Connection], object] = lambda reader: None) -> None:
        """Read the file through a new connection, which has an empty cache."""
        stamp, self._examined = _stamp(self.path), None
        with closing(self._connect("ro", _READER_BUSY_S)) as reader:
            (verdict,) = reader.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict.replace("*** in database main ***", ""))
            (pages,) = reader.execute("PRAGMA page_count").fetchone()
            (page_bytes,) = reader.execute("PRAGMA page_size").fetchone()
            if stamp[1] < min(self._size_bytes, pages * page_bytes):
                raise sqlite3.DatabaseError("it was cut short")
            (version,) = reader.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise sqlite3.DatabaseError(f"its version is {version}, not {VERSION}")
            read(reader)
        self._examined, self._size_bytes = stamp, stamp[1]

    def _checkpoint(self) -> None:
        """Write the log back to the file. The log would hide damage to the file."""
        with closing(self._connect("rw", 0.0)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._examined = _stamp(self.path)

    def _check_usable(self) -> None:
        self._check_identity()
        if self._damage:
            raise sqlite3.DatabaseError(self._damage)

    def _check_writable(self) -> None:
        if not os.access(self.path, os.W_OK):  # SQLite could still write to the open file
            raise sqlite3.OperationalError("attempt to write a readonly database")

    def _check_identity(self) -> None:
        """Check that the path still names the file that was opened."""
        for file, opened in self._opened.items():
            if _identity(file) != opened:
                raise QueueLostError(
                    f"{file} was replaced while it was in use: start again; {_REASSURANCE}"
                )
        if self._opened and _stat(self.path).st_size == 0:
            raise sqlite3.DatabaseError("it is empty")

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate SQLite's errors into one line each, with a remedy."""
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise EngineError(f"{self.path} was closed: the batch is ending") from error
        except sqlite3.DatabaseError as error:
            raise self._queue_error(error) from error

    def _queue_error(self, error: sqlite3.DatabaseError) -> QueueError:
        message = one_line(error)
        if isinstance(error, sqlite3.OperationalError):
            if "locked" in message:
                self._busy_at = time.monotonic()
                return QueueBusyError(
                    f"{self.path} cannot be written now ({message}): see which process holds it, "
                    "or try again later"
                )
            if any(words in message for words in _SYSTEM_ERRORS):
                self._write_failed = True
                remedy = "free some space, or check its disk"
                if "readonly" in message or "unable to open" in message:
                    remedy = "make it and its folder writable"
                return QueueError(
                    f"{self.path} cannot be used ({message}): {remedy}; finished videos are kept, "
                    "and the same command goes on"
                )
        self._damage = message
        return QueueLostError(
            f"{self.path} is damaged ({message}): move it away and start again; {_REASSURANCE}"
        )


_REASSURANCE = "finished videos are kept, and are recognized by their .json"


def _identity(path: Path) -> tuple[int, int]:
    stat = _stat(path)
    return stat.st_dev, stat.st_ino


def _stamp(path: Path) -> tuple[int, int]:
    """Modification time and size: they change with each write to the file."""
    stat = _stat(path)
    return stat.st_mtime_ns, stat.st_size


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError as error:
        raise QueueLostError(
            f"{path} is gone: move it back, or start again; {_REASSURANCE}"
        ) from error
    except OSError as error:
        raise QueueLostError(
            f"{path} cannot be seen ({error.strerror}): mend that, or start again; {_REASSURANCE}"
        ) from error
