"""The file that a folder's queue of jobs is in: SQLite with a write-ahead log.

Several processes of one host may use it at once. Not of several hosts: the log needs memory that
all of them share, and so does not work on network file systems.

Readers have connections of their own, so they wait for no writer. SQLite goes on with a file that
was deleted or moved; so each use checks that the file is still the one that was opened.
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
from longtake.serve.queue.job_tables import BESIDE, FROM_VERSION, VERSION, create_file

_LOOK_AGAIN_S = 0.5
_READERS_WAIT_S = 1.0
"""For the moments in which another process repairs the log."""
_MOST_OF_THE_TIME = 0.02
"""Part of the time in which a file's content is looked at."""
_OF_THE_SYSTEM = ("full", "readonly", "unable to open", "disk I/O error", "out of memory")
"""What SQLite says where the file's content is not to blame."""


class QueueError(EngineError):
    """The queue cannot be used at the moment.

    Attributes:
        summary: what clients of a server are told; no path is in it.
    """

    summary = "the queue cannot be written to"


class QueueBusyError(QueueError):
    """Another process holds the queue's write lock for too long."""

    summary = "another process is writing to the queue"


class QueueLostError(QueueError):
    """The queue's file is gone, was replaced, or is damaged."""

    summary = "the queue's file is gone, was replaced, or is damaged"


class JobDatabase:
    """The tables of jobs and of what happened to them. Threads may share one.

    Args:
        path: of the file.
        read: reads all that must be readable.
        create: make the file if there is none, in a folder that is there.
        read_only: look, and change nothing.
        busy_s: seconds to wait for other writers.
        retry_until: until it is set, a transaction may wait for as long as the file cannot be used.

    Raises:
        RequestError: it is damaged or of another version.
        EngineError: it cannot be written.
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
        self._look_at = 0.0
        self._busy_at = 0.0
        self._write_failed = False
        if create:
            create_file(path)
        try:
            with self._speaking():
                self._open()
        except QueueLostError as error:
            raise RequestError(str(error)) from error

    def _open(self) -> None:
        if _stat(self.path).st_size == 0:  # SQLite would take it for a new one
            raise sqlite3.DatabaseError("it is empty")
        if self._read_only:
            with self.reading() as reader:
                self._check_version(reader, 1)
            return
        self._connection = self._connect("rw", self._busy_s)
        self._set_up()
        self._check_version(self._connection, VERSION)
        files = [self.path, *(Path(f"{self.path}{suffix}") for suffix in BESIDE)]
        self._opened = {file: _identity(file) for file in files}
        self.check()

    def _connect(self, mode: str, busy_s: float) -> sqlite3.Connection:
        path = self.path.absolute()
        if self._read_only and not os.access(path.parent, os.W_OK):
            if not os.path.exists(f"{path}{BESIDE[0]}"):  # nor can SQLite make one
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
            except sqlite3.OperationalError as error:  # SQLite does not wait for others here
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._connection.execute("PRAGMA synchronous = FULL")  # a power cut loses nothing
        with self._alone():
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
        """Let go of the file."""
        self._closed = True
        with self._lock, self._speaking():
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
        """All of it or nothing, and alone meanwhile; one within another is part of it.

        Args:
            waits_for: what is waited for to pass, before it begins, where there is retry_until.

        Raises:
            QueueError: it was not, or may not have been, written.
        """
        with ExitStack() as opened:
            while True:
                try:
                    connection = opened.enter_context(self._transaction())
                    break
                except waits_for:
                    if self._retry_until is None or self._retry_until.wait(_LOOK_AGAIN_S):
                        raise
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        begun = time.monotonic()
        with self._lock, self._speaking():
            if self._connection.in_transaction:
                yield self._connection
                return
            if self._busy_at > begun:  # another thread has waited meanwhile, and in vain
                raise sqlite3.OperationalError("database is locked")
            self._check_usable()
            self._check_writable()
            if _stamp(self.path) != self._examined:
                self._examine()
            with self._alone():
                yield self._connection
            self._check_usable()
            self._write_failed = False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that reads, for this thread alone.

        Raises:
            QueueError: it cannot be read.
        """
        with self._speaking():
            if self._closed:
                raise sqlite3.ProgrammingError
            self._check_usable()
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = self._connect("ro", _READERS_WAIT_S)
            try:
                yield reader
            finally:
                self._readers.append(reader)
                if self._closed:
                    self._close_readers()

    def check(self) -> None:
        """See whether the file can be used: whether it is the one that was opened, is whole, and
        can be written to. Its content is looked at if it was changed from outside, and otherwise
        as often as that takes little of the time.

        Raises:
            QueueError: it cannot.
        """
        with self._speaking():
            self._check_there()
            if time.monotonic() >= self._look_at or _stamp(self.path) != self._examined:
                begun = time.monotonic()
                try:
                    self._examine(self._read)
                    self._damage = ""
                finally:
                    ended = time.monotonic()
                    self._look_at = ended + (ended - begun) / _MOST_OF_THE_TIME
            self._check_usable()
            self._check_writable()
            self._complete()
            if self._write_failed:
                with self.transaction() as writer:
                    writer.execute(f"PRAGMA user_version = {VERSION}")

    def _examine(self, read: Callable[[sqlite3.Connection], object] = lambda reader: None) -> None:
        """Read the file on a new connection, which has nothing cached."""
        stamp, self._examined = _stamp(self.path), None
        with closing(self._connect("ro", _READERS_WAIT_S)) as reader:
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

    def _complete(self) -> None:
        """Carry over what is in the log alone, so that the file's damage is seen."""
        with closing(self._connect("rw", 0.0)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._examined = _stamp(self.path)

    def _check_usable(self) -> None:
        self._check_there()
        if self._damage:
            raise sqlite3.DatabaseError(self._damage)

    def _check_writable(self) -> None:
        if not os.access(self.path, os.W_OK):  # though what is open may still be written to
            raise sqlite3.OperationalError("attempt to write a readonly database")

    def _check_there(self) -> None:
        """Whether the file is still the one that was opened."""
        for file, opened in self._opened.items():
            if _identity(file) != opened:
                raise QueueLostError(
                    f"{file} was replaced while it was in use: start again; {_KEPT}"
                )
        if self._opened and _stat(self.path).st_size == 0:
            raise sqlite3.DatabaseError("it is empty")

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """SQLite's errors in one line, and a way out."""
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise EngineError(f"{self.path} was closed: the batch is ending") from error
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def _told(self, error: sqlite3.DatabaseError) -> QueueError:
        said = one_line(error)
        if isinstance(error, sqlite3.OperationalError):
            if "locked" in said:
                self._busy_at = time.monotonic()
                return QueueBusyError(
                    f"{self.path} cannot be written now ({said}): see which process holds it, or "
                    "try again later"
                )
            if any(words in said for words in _OF_THE_SYSTEM):
                self._write_failed = True
                way_out = "free some space, or see to its disk"
                if "readonly" in said or "unable to open" in said:
                    way_out = "make it and its folder writable"
                return QueueError(
                    f"{self.path} cannot be used ({said}): {way_out}; what is rendered is kept, "
                    "and the same command goes on"
                )
        self._damage = said
        return QueueLostError(
            f"{self.path} is damaged ({said}): move it away and start again; {_KEPT}"
        )


_KEPT = "what is rendered stays, and is known by its .json"


def _identity(path: Path) -> tuple[int, int]:
    stat = _stat(path)
    return stat.st_dev, stat.st_ino


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written to."""
    stat = _stat(path)
    return stat.st_mtime_ns, stat.st_size


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError as error:
        raise QueueLostError(f"{path} is gone: move it back, or start again; {_KEPT}") from error
    except OSError as error:
        raise QueueLostError(
            f"{path} cannot be seen ({error.strerror}): mend that, or start again; {_KEPT}"
        ) from error
