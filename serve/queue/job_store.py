"""A durable queue of jobs in a folder: whatever dies, none is lost, and each is done once.

Several processes of one host may work on a folder (see :mod:`longtake.serve.queue.job_database`).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from longtake.errors import LongtakeError, RequestError, one_line
from longtake.files.atomic import writing
from longtake.serve.queue.job_database import (
    JobDatabase,
    QueueBusyError,
    QueueError,
    QueueLostError,
)
from longtake.serve.queue.job_records import Event, JobRecord, NewJob, State, kind_of, record_of
from longtake.serve.queue.process_identity import Owner

WORK_FOLDER = ".longtake"
"""What is no output, in a folder of outputs."""

LEASE_S = 60.0
"""How long a claim holds without a sign of an owner of whom it cannot be told that it ended."""


StoreT = TypeVar("StoreT", bound="JobStore")


class ClaimLostError(LongtakeError):
    """A job was taken over by another process, which this one's result must not disturb."""


class JobStore:
    """The queue of one folder. Threads may share one.

    Args:
        folder: of the outputs.
        create: make the queue if there is none.
        read_only: look, and change nothing.
        busy_s: seconds to wait for other processes that write.
        patience: until it is set, who works on jobs waits while the queue cannot be used; without
            it, that is an error.

    Raises:
        RequestError: there is none, or it is damaged or of another version.
        EngineError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        busy_s: float = 30.0,
        patience: threading.Event | None = None,
    ) -> None:
        path = folder / WORK_FOLDER / "jobs.sqlite"
        self.folder = folder
        self.here = Owner.new_queue()
        self._held: set[tuple[str, int]] = set()
        if create:
            with writing(path):
                path.parent.mkdir(exist_ok=True)
        elif not path.is_file():
            raise RequestError(f"{folder} holds no jobs: name a folder that longtake batch wrote")
        self._database = JobDatabase(
            path, self._read, create=create, read_only=read_only, busy_s=busy_s, patience=patience
        )

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def check_usable(self) -> None:
        """Look at the queue's file, past all caches.

        Raises:
            QueueError: it cannot be read or written.
        """
        self._database.check()

    def _read(self, database: sqlite3.Connection) -> None:
        """All of the queue."""
        self._select(database)
        database.execute("SELECT number, job, at, kind, text FROM events LIMIT 1").fetchall()

    def __enter__(self: StoreT) -> StoreT:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # What a batch adds.

    def enqueue(
        self, jobs: Iterable[NewJob], is_there: Callable[[JobRecord], bool], now: float
    ) -> dict[str, int]:
        """Add jobs. One that is there already, and is the same, is left as it is; one that is done
        and whose output is gone, and one that changed, is queued again.

        Args:
            is_there: whether the output of a job that is done is still there.

        Returns:
            How many are "new", "changed", "again" and "unchanged".
        """
        counts = dict.fromkeys(("new", "changed", "again", "unchanged"), 0)
        with self._database.transaction() as database:
            known = {each.id: each for each in self._select(database)}
            for job in jobs:
                kind = kind_of(job, known.get(job.id), is_there)
                counts[kind] += 1
                if kind == "unchanged":
                    place = (job.source, job.position, job.id)
                    database.execute("UPDATE jobs SET source=?, position=? WHERE id=?", place)
                    continue
                before = known.get(job.id)
                if before and kind == "again":
                    job = replace(job, request=before.request)
                self._insert(database, job, kind, now, claims=before.claims if before else 0)
        return counts

    def withdraw(self, source: str, kept: Iterable[str], now: float) -> list[str]:
        """Cancel what was queued from a file that no longer names it; returns the ids."""
        named = set(kept)
        with self._database.transaction() as database:
            gone = [
                each.id
                for each in self._select(database, "source=? AND state='queued'", source)
                if each.id not in named
            ]
            for job in gone:
                self._end(database, job, "cancelled", now, error=f"no longer in {source}")
        return gone

    # What works on the jobs.

    def claim(self, engine: str, now: float) -> JobRecord | None:
        """Take the next job, for one worker alone: one that waits, or whose worker has ended.

        The claim holds until :meth:`release`, which the worker calls however it ends.

        Args:
            engine: digest of what is to render it.
        """
        with ExitStack() as unless_written:
            with self._database.transaction(waits_for=QueueError) as database:
                job = self._next(database, engine, now)
                if job is None:
                    return None
                database.execute(
                    "UPDATE jobs SET state='running', claims=claims+1, owner=?, lease_until=?, "
                    "started_at=?, ended_at=NULL, phase='', error='' WHERE id=?",
                    (self.here.model_dump_json(), now + LEASE_S, now, job.id),
                )
                self._note(database, job.id, "running", f"attempt {job.claims + 1}", now)
                claimed = self._select(database, "id=?", job.id)[0]
                held = claimed.id, claimed.claims
                self._held.add(held)  # before another thread can see that it runs
                unless_written.callback(self._held.discard, held)
            unless_written.pop_all()
            return claimed

    def _next(self, database: sqlite3.Connection, engine: str, now: float) -> JobRecord | None:
        """The first job that can be claimed; those before it that were cancelled end."""
        while True:
            running = self._select(database, "state='running' AND engine=?", engine)
            ended = [each for each in running if self._is_free(each, now)]
            waiting = self._select(
                database,
                "state='queued' AND engine=? AND not_before<=? ORDER BY position, id LIMIT 1",
                engine,
                now,
            )
            free = sorted([*ended, *waiting], key=lambda each: each.position)
            if not free:
                return None
            job = free[0]
            if job.state == "running":
                self._note(database, job.id, "taken over", "its worker has ended", now)
            if not job.cancelling:
                return job
            self._end(database, job.id, "cancelled", now, error="as was asked")

    def release(self, job: JobRecord, now: float) -> None:
        """The worker of a claim has ended. If its job still runs by that claim, it waits again; if
        that cannot be written, the next claim through this queue takes it over."""
        self._held.discard((job.id, job.claims))
        with suppress(LongtakeError):
            self.put_back(job, "its worker has ended", now)

    def unfinished(self, engine: str) -> int:
        """How many jobs of an engine wait or run, whoever works on them."""
        with self._database.reading() as database:
            rows = database.execute(
                "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running') AND engine=?",
                (engine,),
            )
            (count,) = rows.fetchone()
            return int(count)

    def renew(self, job: JobRecord, phase: str, steps_done: int, now: float) -> bool:
        """Say that this process still works on a job, and where it stands.

        Returns:
            Whether the job was asked to end.

        Raises:
            ClaimLostError: another process has it.
        """
        with self._claimed(job) as database:
            database.execute(
                "UPDATE jobs SET lease_until=?, phase=?, steps_done=? WHERE id=?",
                (now + LEASE_S, phase, steps_done, job.id),
            )
            return self._select(database, "id=?", job.id)[0].cancelling

    def check(self, job: JobRecord) -> None:
        """Raises ClaimLostError if another process has a job. A queue that is lost gives it to
        none."""
        with suppress(QueueLostError), self._claimed(job, waits_for=QueueBusyError):
            pass

    def finish(self, job: JobRecord, seconds: dict[str, float], now: float, why: str = "") -> None:
        """A job is done, and its output has its name."""
        with self._claimed(job, waits_for=QueueError) as database:
            self._end(database, job.id, "done", now, seconds=seconds, text=why)

    def fail(self, job: JobRecord, error: str, now: float) -> None:
        """A job is set aside."""
        with self._claimed(job, waits_for=QueueError) as database:
            self._end(database, job.id, "failed", now, error=error)

    def end_as_asked(self, job: JobRecord, now: float) -> None:
        """A job has ended because it was cancelled."""
        with self._claimed(job, waits_for=QueueError) as database:
            self._end(database, job.id, "cancelled", now, error="as was asked")

    def put_back(self, job: JobRecord, why: str, now: float) -> None:
        """A job waits again, through no fault of its own."""
        with self._claimed(job, waits_for=QueueError) as database:
            database.execute("UPDATE jobs SET state='queued', owner=NULL WHERE id=?", (job.id,))
            self._note(database, job.id, "waits", why, now)

    def try_again(
        self, job: JobRecord, error: str, step: int, low_memory: bool, wait_s: float, now: float
    ) -> None:
        """A job had a fault, and waits for another attempt.

        Args:
            step: that it goes on from.
            low_memory: decode it with as little memory as can be from now on.
        """
        faults = 1 if step > job.fault_step else job.faults + 1
        with self._claimed(job, waits_for=QueueError) as database:
            database.execute(
                "UPDATE jobs SET state='queued', owner=NULL, faults=?, fault_step=?, sparing=?, "
                "not_before=?, error=? WHERE id=?",
                (faults, step, int(low_memory), now + wait_s, error, job.id),
            )
            self._note(database, job.id, "fault", error, now)

    def note(self, job: JobRecord, kind: str, text: str, now: float) -> None:
        """Record something that happened to a job."""
        with self._database.transaction(waits_for=QueueError) as database:
            self._note(database, job.id, kind, text, now)

    # What a user asks.

    def cancel(self, ids: Sequence[str], now: float) -> list[str]:
        """Cancel jobs: those that wait at once, those that run between two steps.

        Returns:
            The ids of those that had ended already.
        """
        ended = []
        with self._database.transaction() as database:
            for job in self._named(database, ids):
                if job.state == "queued" or (job.state == "running" and self._is_free(job, now)):
                    self._end(database, job.id, "cancelled", now, error="as was asked")
                elif job.state == "running":
                    database.execute("UPDATE jobs SET cancelling=1 WHERE id=?", (job.id,))
                    self._note(database, job.id, "cancelling", "", now)
                else:
                    ended.append(job.id)
        return ended

    def retry(self, ids: Sequence[str], now: float) -> list[str]:
        """Queue jobs again that failed or were cancelled; all that failed if none is named.

        Returns:
            The ids of those that are queued now.
        """
        queued = []
        with self._database.transaction() as database:
            jobs = self._named(database, ids) if ids else self._select(database, "state='failed'")
            for job in jobs:
                if job.state in ("failed", "cancelled"):
                    database.execute(
                        "UPDATE jobs SET state='queued', faults=0, fault_step=-1, not_before=0, "
                        "cancelling=0, error='' WHERE id=?",
                        (job.id,),
                    )
                    self._note(database, job.id, "queued", "again, as was asked", now)
                    queued.append(job.id)
        return queued

    def jobs(self, source: str | None = None) -> list[JobRecord]:
        """All jobs in the order of the queue; of one file if it is named."""
        with self._database.reading() as database:
            if source is None:
                return self._select(database, "1 ORDER BY position, id")
            return self._select(database, "source=? ORDER BY position, id", source)

    def job(self, name: str) -> JobRecord:
        """One job.

        Raises:
            RequestError: there is none of that id.
        """
        with self._database.reading() as database:
            return self._named(database, [name])[0]

    def events(self, name: str) -> list[Event]:
        """What happened to a job, in order."""
        with self._database.reading() as database:
            rows = database.execute(
                "SELECT at, kind, text FROM events WHERE job=? ORDER BY number", (name,)
            )
            return [Event(**dict(row)) for row in rows]

    # The database.

    def _is_free(self, job: JobRecord, now: float) -> bool:
        """Whether the worker of a running job is no more, or has given no sign for too long."""
        if job.owner is None:
            return True
        if job.owner == self.here:
            return (job.id, job.claims) not in self._held
        ended = job.owner.ended(self.here)
        return job.lease_until < now if ended is None else ended

    def _named(self, database: sqlite3.Connection, ids: Sequence[str]) -> list[JobRecord]:
        found = []
        for name in ids:
            jobs = self._select(database, "id=?", name)
            if not jobs:
                raise RequestError(f"there is no job {name!r} in {self.folder}")
            found += jobs
        return found

    @staticmethod
    def _select(database: sqlite3.Connection, where: str = "1", *values: object) -> list[JobRecord]:
        rows = database.execute(f"SELECT * FROM jobs WHERE {where}", values)
        try:
            return [record_of(dict(row)) for row in rows.fetchall()]
        except (ValueError, TypeError) as error:
            raise sqlite3.DatabaseError(f"a row is no job: {one_line(error)[:200]}") from error

    def _insert(
        self, database: sqlite3.Connection, job: NewJob, kind: str, now: float, *, claims: int = 0
    ) -> None:
        values = {
            **{each.name: getattr(job, each.name) for each in fields(NewJob)},
            "request": job.request.model_dump_json(),
            "claims": claims,
            "queued_at": now,
        }
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        statement = f"INSERT OR REPLACE INTO jobs ({names}) VALUES ({marks})"
        database.execute(statement, tuple(values.values()))
        self._note(database, job.id, "queued", kind, now)

    def _end(
        self,
        database: sqlite3.Connection,
        job: str,
        state: State,
        now: float,
        *,
        error: str = "",
        seconds: dict[str, float] | None = None,
        text: str = "",
    ) -> None:
        database.execute(
            "UPDATE jobs SET state=?, owner=NULL, cancelling=0, ended_at=?, error=?, seconds=? "
            "WHERE id=?",
            (state, now, error, json.dumps(seconds or {}), job),
        )
        self._note(database, job, state, error or text, now)

    @staticmethod
    def _note(database: sqlite3.Connection, job: str, kind: str, text: str, now: float) -> None:
        database.execute(
            "INSERT INTO events (job, at, kind, text) VALUES (?, ?, ?, ?)", (job, now, kind, text)
        )

    @contextmanager
    def _claimed(
        self, job: JobRecord, *, waits_for: type[QueueError] | tuple[()] = ()
    ) -> Iterator[sqlite3.Connection]:
        """A transaction in which a job is a worker's own, by the claim that it was given."""
        with self._database.transaction(waits_for) as database:
            row = database.execute(
                "SELECT 1 FROM jobs WHERE id=? AND claims=? AND state='running' AND owner=?",
                (job.id, job.claims, self.here.model_dump_json()),
            )
            if row.fetchone() is None:
                raise ClaimLostError(f"{job.id} was taken over by another process")
            yield database
