"""A durable queue of jobs in a folder: no job is lost, and each is done once.

Several processes of one host may share a folder; see :mod:`longtake.serve.queue.job_database`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from longtake.errors import RequestError
from longtake.files.atomic import writing
from longtake.serve.queue.claims import CANCELLED, Claims
from longtake.serve.queue.job_database import JobDatabase, QueueError
from longtake.serve.queue.job_records import Event, JobRecord, NewJob
from longtake.serve.queue.job_rows import add_event, end_job, insert_job, select_jobs

WORK_FOLDER = ".longtake"
"""Subfolder of an output folder for everything that is not output."""

_WITHDRAWN = "no longer in "

StoreT = TypeVar("StoreT", bound="JobStore")


class JobStore:
    """The queue of one output folder. Thread-safe.

    Args:
        folder: Output folder.
        create: Whether to create a missing queue.
        read_only: Whether to open the queue without changing it.
        busy_s: Seconds to wait while another process writes.
        retry_until: Until this event is set, workers wait while the queue is unusable; None: they
            fail at once.

    Attributes:
        folder: Output folder.
        claims: Claims of this process on jobs.

    Raises:
        RequestError: There is no queue, or it is damaged or of another version.
        EngineError: The queue cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        busy_s: float = 30.0,
        retry_until: threading.Event | None = None,
    ) -> None:
        path = folder / WORK_FOLDER / "jobs.sqlite"
        self.folder = folder
        if create:
            with writing(path):
                path.parent.mkdir(exist_ok=True)
        elif not path.is_file():
            raise RequestError(f"{folder} holds no jobs: name a folder that longtake batch wrote")
        self._database = JobDatabase(
            path,
            _read_all,
            create=create,
            read_only=read_only,
            busy_s=busy_s,
            retry_until=retry_until,
        )
        self.claims = Claims(self._database)

    def close(self) -> None:
        """Close the queue's file."""
        self._database.close()

    def __enter__(self: StoreT) -> StoreT:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def check_usable(self) -> None:
        """Check the queue's file on disk, without caches.

        Raises:
            QueueError: The file cannot be read or written.
        """
        self._database.check()

    # For batches.

    def enqueue(
        self, jobs: Iterable[NewJob], has_output: Callable[[JobRecord], bool], now: float
    ) -> dict[str, int]:
        """Add jobs. A known job is queued again if it changed, was withdrawn, or lost its output.

        Args:
            jobs: The jobs, in order.
            has_output: Whether the output of a finished job still exists.
            now: Seconds since 1970.

        Returns:
            The number of jobs that are "new", "changed", "again" and "unchanged".
        """
        counts = dict.fromkeys(("new", "changed", "again", "unchanged"), 0)
        with self._database.transaction() as connection:
            known = {each.id: each for each in select_jobs(connection)}
            for job in jobs:
                previous = known.get(job.id)
                kind = _kind(job, previous, has_output)
                counts[kind] += 1
                if kind == "unchanged":
                    place = (job.source, job.position, job.id)
                    connection.execute("UPDATE jobs SET source=?, position=? WHERE id=?", place)
                    continue
                if previous and kind == "again":
                    job = replace(job, request=previous.request)
                insert_job(connection, job, kind, now, claims=previous.claims if previous else 0)
        return counts

    def withdraw(self, source: str, kept: Iterable[str], now: float) -> list[str]:
        """Cancel the queued jobs of a shots file that no longer names them.

        Args:
            source: Path of the shots file.
            kept: IDs that the file names.
            now: Seconds since 1970.

        Returns:
            The IDs of the cancelled jobs.
        """
        named = set(kept)
        with self._database.transaction() as connection:
            withdrawn = [
                each.id
                for each in select_jobs(connection, "source=? AND state='queued'", source)
                if each.id not in named
            ]
            for job_id in withdrawn:
                end_job(connection, job_id, "cancelled", now, f"{_WITHDRAWN}{source}")
        return withdrawn

    def note(self, job: JobRecord, kind: str, text: str, now: float) -> None:
        """Append to the history of a job."""
        with self._database.transaction(waits_for=QueueError) as connection:
            add_event(connection, job.id, kind, text, now)

    # For users.

    def cancel(self, ids: Sequence[str], now: float) -> list[str]:
        """Cancel all the jobs or none: queued ones at once, running ones after the current step.

        Returns:
            The IDs of jobs that had ended already.

        Raises:
            RequestError: An ID is unknown.
        """
        ended = []
        with self._database.transaction() as connection:
            for job in self._named(connection, ids):
                running = job.state == "running"
                if job.state == "queued" or (running and self.claims.is_abandoned(job, now)):
                    end_job(connection, job.id, "cancelled", now, CANCELLED)
                elif running:
                    connection.execute("UPDATE jobs SET cancelling=1 WHERE id=?", (job.id,))
                    add_event(connection, job.id, "cancelling", "", now)
                else:
                    ended.append(job.id)
        return ended

    def retry(self, ids: Sequence[str], now: float) -> list[str]:
        """Queue failed or cancelled jobs again, with no faults counted.

        Args:
            ids: IDs of the jobs; empty: all failed jobs.
            now: Seconds since 1970.

        Returns:
            The IDs of the jobs that are now queued.

        Raises:
            RequestError: An ID is unknown.
        """
        queued = []
        with self._database.transaction() as connection:
            jobs = (
                self._named(connection, ids) if ids else select_jobs(connection, "state='failed'")
            )
            for job in jobs:
                if job.state in ("failed", "cancelled"):
                    connection.execute(
                        "UPDATE jobs SET state='queued', faults=0, fault_step=-1, not_before=0, "
                        "cancelling=0, error='' WHERE id=?",
                        (job.id,),
                    )
                    add_event(connection, job.id, "queued", "again, by request", now)
                    queued.append(job.id)
        return queued

    # Queries.

    def jobs(self) -> list[JobRecord]:
        """All jobs, in the order of the queue."""
        with self._database.reading() as connection:
            return select_jobs(connection, "1 ORDER BY position, id")

    def job(self, job_id: str) -> JobRecord:
        """The job with an ID.

        Raises:
            RequestError: The ID is unknown.
        """
        with self._database.reading() as connection:
            return self._named(connection, [job_id])[0]

    def events(self, job_id: str) -> list[Event]:
        """The history of a job, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT at, kind, text FROM events WHERE job=? ORDER BY number", (job_id,)
            )
            return [Event(**dict(row)) for row in rows]

    def unfinished(self, engine: str) -> int:
        """The number of queued and running jobs of an engine, in any process."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running') AND engine=?",
                (engine,),
            )
            (count,) = rows.fetchone()
            return int(count)

    def _named(self, connection: sqlite3.Connection, ids: Sequence[str]) -> list[JobRecord]:
        found = []
        for job_id in ids:
            jobs = select_jobs(connection, "id=?", job_id)
            if not jobs:
                raise RequestError(f"there is no job {job_id!r} in {self.folder}")
            found += jobs
        return found


def _read_all(connection: sqlite3.Connection) -> None:
    """Read every job, and check the events table."""
    select_jobs(connection)
    connection.execute("SELECT number, job, at, kind, text FROM events LIMIT 1").fetchall()


def _kind(job: NewJob, known: JobRecord | None, has_output: Callable[[JobRecord], bool]) -> str:
    """How a new job relates to the job with the same ID in the queue."""
    if known is None:
        return "new"
    if known.fingerprint != job.fingerprint or known.output != job.output:
        return "changed"
    output_lost = known.state == "done" and not has_output(known)
    withdrawn = known.state == "cancelled" and known.error.startswith(_WITHDRAWN)
    return "again" if output_lost or withdrawn else "unchanged"
