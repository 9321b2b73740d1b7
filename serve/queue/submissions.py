"""The queue of a server, whose clients add, list and delete jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace

from longtake.errors import RequestError
from longtake.serve.queue.job_records import DoneJob, JobRecord, NewJob
from longtake.serve.queue.job_rows import end_job, insert_job, select_jobs
from longtake.serve.queue.job_store import JobStore

SERVER_SOURCE = "serve"
"""Source of the server's jobs. The label of the client's API key follows it, if there is one."""

_OF_SERVER = f"(source='{SERVER_SOURCE}' OR source LIKE '{SERVER_SOURCE} %')"
_ENDED = "state NOT IN ('queued', 'running')"


class QueueFullError(RequestError):
    """The queue accepts no more jobs at the moment."""


class OtherRequestError(RequestError):
    """The ID belongs to another request."""


class BeingDeletedError(RequestError):
    """The ID belongs to a deleted job whose files still exist."""


class Submissions(JobStore):
    """The queue of a server. Takes the same arguments as :class:`JobStore`.

    Queries return only the server's jobs: a batch may have added others to the same folder.
    """

    def add(
        self, job: NewJob, now: float, *, most_waiting: int, most_of_source: int
    ) -> tuple[JobRecord, bool]:
        """Append a job, unless the queue has the same job already.

        Args:
            job: The job; its position is ignored.
            now: Seconds since 1970.
            most_waiting: Maximum number of queued jobs.
            most_of_source: Maximum number of queued jobs of one source.

        Returns:
            The job in the queue, and whether it is new.

        Raises:
            QueueFullError: A maximum is reached.
            OtherRequestError: The ID belongs to a job with another fingerprint.
            BeingDeletedError: The ID belongs to a deleted job that is not removed yet.
        """
        with self._database.transaction() as connection:
            known = select_jobs(connection, "id=?", job.id)
            if known and known[0].fingerprint == job.fingerprint and not known[0].deleted:
                return known[0], False
            if known and known[0].deleted:
                raise BeingDeletedError(f"{job.id} was deleted a moment ago: try again")
            if known:
                raise OtherRequestError(f"{job.id} is that of another request: choose another")
            waiting = connection.execute(
                "SELECT count(*), coalesce(sum(source=?), 0) FROM jobs WHERE state='queued'",
                (job.source,),
            )
            count, of_source = waiting.fetchone()
            if count >= most_waiting:
                raise QueueFullError(f"{count} videos wait, which is the most: try again later")
            if of_source >= most_of_source:
                raise QueueFullError(
                    f"{of_source} of your videos wait, which is the most: try again later"
                )
            job = replace(job, position=_last_position(connection) + 1)
            insert_job(connection, job, "new", now)
            return select_jobs(connection, "id=?", job.id)[0], True

    def restore(self, jobs: Iterable[DoneJob]) -> None:
        """Append finished jobs whose records were lost."""
        with self._database.transaction() as connection:
            for position, job in enumerate(jobs, _last_position(connection) + 1):
                placed = replace(job, position=position)
                insert_job(connection, placed, "found", job.queued_at, claims=job.claims)
                connection.execute(
                    "UPDATE jobs SET started_at=? WHERE id=?", (job.started_at, job.id)
                )
                end_job(connection, job.id, "done", job.ended_at, seconds=job.seconds)

    def adopt(self, engine: str, model: str, now: float) -> int:
        """Assign unfinished jobs to the current engine, if their model is the same.

        Unfinished jobs of other models fail.

        Args:
            engine: Digest of the current engine.
            model: Its model, as in :attr:`NewJob.model`.
            now: Seconds since 1970.

        Returns:
            The number of jobs that failed.
        """
        with self._database.transaction() as connection:
            unfinished = select_jobs(
                connection, f"{_OF_SERVER} AND engine<>? AND NOT {_ENDED}", engine
            )
            others = [job for job in unfinished if job.model != model]
            for job in unfinished:
                connection.execute("UPDATE jobs SET engine=? WHERE id=?", (engine, job.id))
            for job in others:
                requested, served = (each.partition("@")[0] for each in (job.model, model))
                reason = f"{served} is served"
                if requested == served:
                    reason = "its weights have changed"
                error = f"it waited for the model {requested}, and {reason}: send it again"
                end_job(connection, job.id, "failed", now, error)
            return len(others)

    def find(self, job_id: str) -> JobRecord | None:
        """The job with an ID; None if it is unknown or was deleted."""
        with self._database.reading() as connection:
            jobs = select_jobs(connection, f"id=? AND deleted=0 AND {_OF_SERVER}", job_id)
            return jobs[0] if jobs else None

    def page(
        self, after: int | None, limit: int, *, newest_first: bool
    ) -> tuple[list[JobRecord], bool]:
        """A page of jobs.

        Args:
            after: Position of the last job of the previous page; None for the first page.
            limit: Maximum number of jobs.
            newest_first: Whether the newest job comes first.

        Returns:
            The jobs, and whether more follow.
        """
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        behind = "" if after is None else f"AND position {sign} {int(after)} "
        with self._database.reading() as connection:
            jobs = select_jobs(
                connection,
                f"deleted=0 AND {_OF_SERVER} {behind}ORDER BY position {order} LIMIT ?",
                limit + 1,
            )
        return jobs[:limit], len(jobs) > limit

    def unfinished_jobs(self) -> list[JobRecord]:
        """Running jobs, then queued ones in the order of rendering."""
        with self._database.reading() as connection:
            return select_jobs(
                connection, f"NOT {_ENDED} ORDER BY state='queued', position, not_before"
            )

    def delete(self, job_id: str, now: float) -> None:
        """Mark a job as deleted, and cancel it if it has not ended. See :meth:`removable`."""
        with self._database.transaction() as connection:
            if not select_jobs(connection, "id=?", job_id):
                return
            self.cancel([job_id], now)
            connection.execute("UPDATE jobs SET deleted=1 WHERE id=?", (job_id,))

    def removable(self, ended_before: float) -> list[JobRecord]:
        """Ended jobs that were deleted or ended before a time.

        The caller removes their files, then calls :meth:`forget`.

        Args:
            ended_before: Seconds since 1970.
        """
        with self._database.reading() as connection:
            return select_jobs(
                connection,
                f"{_OF_SERVER} AND {_ENDED} AND (deleted=1 OR ended_at<?)",
                ended_before,
            )

    def forget(self, jobs: Sequence[JobRecord]) -> None:
        """Remove the records and histories of jobs."""
        with self._database.transaction() as connection:
            for job in jobs:
                connection.execute("DELETE FROM events WHERE job=?", (job.id,))
                connection.execute("DELETE FROM jobs WHERE id=?", (job.id,))


def _last_position(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute("SELECT coalesce(max(position), 0) FROM jobs").fetchone()
    return int(last)
