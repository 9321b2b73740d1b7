"""A queue that clients add to one by one, read in pages, and take things out of."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace

from longtake.errors import RequestError
from longtake.serve.queue.job_records import DoneJob, JobRecord, NewJob
from longtake.serve.queue.job_store import JobStore

DOOR = "serve"
_OF_DOOR = f"(source='{DOOR}' OR source LIKE '{DOOR} %')"
_ENDED = "state NOT IN ('queued', 'running')"


class QueueFullError(RequestError):
    """As many jobs wait as may; one more has to come back later."""


class OtherRequestError(RequestError):
    """An id that names another request already."""


class BeingDeletedError(RequestError):
    """An id whose job was deleted, and whose files are still there."""


class Submissions(JobStore):
    """The jobs that came through one door, whose sources begin with its name.

    Args:
        As :class:`JobStore`.
    """

    def add(
        self, job: NewJob, now: float, *, most_waiting: int, most_of_source: int
    ) -> tuple[JobRecord, bool]:
        """Put a job behind all others. One of the same id and fingerprint is there only once.

        Args:
            job: its position is found here; its source is the door's name, and who asks.
            most_waiting: jobs that may wait, whoever asked for them.
            most_of_source: of them, those of one who asks.

        Returns:
            The job as it stands, and whether it is new.

        Raises:
            QueueFullError: no more may wait.
            OtherRequestError: the id is that of another job.
            BeingDeletedError: it was that of one which is not gone yet.
        """
        with self._database.transaction() as database:
            known = self._select(database, "id=?", job.id)
            if known and known[0].fingerprint == job.fingerprint and not known[0].deleted:
                return known[0], False
            if known and known[0].deleted:
                raise BeingDeletedError(f"{job.id} was deleted a moment ago: try again")
            if known:
                raise OtherRequestError(f"{job.id} is that of another request: choose another")
            waiting = database.execute(
                "SELECT count(*), coalesce(sum(source=?), 0) FROM jobs WHERE state='queued'",
                (job.source,),
            )
            count, of_source = waiting.fetchone()
            if count >= most_waiting:
                raise QueueFullError(f"{count} videos wait, which is all that may: try again later")
            if of_source >= most_of_source:
                raise QueueFullError(
                    f"{of_source} of your videos wait, which is all that may: try again later"
                )
            self._insert(database, replace(job, position=self._last(database) + 1), "new", now)
            return self._select(database, "id=?", job.id)[0], True

    def restore(self, jobs: Iterable[DoneJob]) -> None:
        """Put jobs that are done behind all others."""
        with self._database.transaction() as database:
            for position, job in enumerate(jobs, self._last(database) + 1):
                placed = replace(job, position=position)
                self._insert(database, placed, "found", job.queued_at, claims=job.claims)
                database.execute(
                    "UPDATE jobs SET started_at=? WHERE id=?", (job.started_at, job.id)
                )
                self._end(database, job.id, "done", job.ended_at, seconds=job.seconds)

    def adopt(self, engine: str, model: str, now: float) -> int:
        """Have an engine take on what waits for an earlier one of the same model; what waits for
        another model fails.

        Args:
            model: as jobs have it: a name, @, and what tells it from others of its name.

        Returns:
            How many failed.
        """
        with self._database.transaction() as database:
            left = self._select(
                database,
                f"{_OF_DOOR} AND engine<>? AND NOT {_ENDED}",
                engine,
            )
            others = [job for job in left if job.model != model]
            for job in left:
                database.execute("UPDATE jobs SET engine=? WHERE id=?", (engine, job.id))
            for job in others:
                asked, served = (each.partition("@")[0] for each in (job.model, model))
                other = f"{served} is served" if asked != served else "its weights are others now"
                error = f"it waited for the model {asked}, and {other}: send it again"
                self._end(database, job.id, "failed", now, error=error)
            return len(others)

    def found(self, name: str) -> JobRecord | None:
        """One job of this door; None if there is none, or if it was deleted."""
        with self._database.reading() as database:
            jobs = self._select(database, f"id=? AND deleted=0 AND {_OF_DOOR}", name)
            return jobs[0] if jobs else None

    def page(
        self, after: int | None, limit: int, *, newest_first: bool
    ) -> tuple[list[JobRecord], bool]:
        """So many jobs of this door, behind a position, and whether there are more."""
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        behind = "" if after is None else f"AND position {sign} {int(after)} "
        with self._database.reading() as database:
            jobs = self._select(
                database,
                f"deleted=0 AND {_OF_DOOR} {behind}ORDER BY position {order} LIMIT ?",
                limit + 1,
            )
        return jobs[:limit], len(jobs) > limit

    def unfinished_jobs(self) -> list[JobRecord]:
        """Those that run, and those that wait, in the order in which they will be done."""
        with self._database.reading() as database:
            return self._select(
                database, f"NOT {_ENDED} ORDER BY state='queued', position, not_before"
            )

    def delete(self, name: str, now: float) -> None:
        """Nobody asks for a job any more; if it has not ended it is cancelled. See :meth:`gone`."""
        with self._database.transaction() as database:
            if not self._select(database, "id=?", name):
                return
            self.cancel([name], now)
            database.execute("UPDATE jobs SET deleted=1 WHERE id=?", (name,))

    def gone(self, ended_before: float) -> list[JobRecord]:
        """Ended jobs of this door that were deleted, or ended before a time, in seconds since
        1970: their files can go, and then they can be forgotten."""
        with self._database.reading() as database:
            return self._select(
                database,
                f"{_OF_DOOR} AND {_ENDED} AND (deleted=1 OR ended_at<?)",
                ended_before,
            )

    def forget(self, jobs: Sequence[JobRecord]) -> None:
        """Take ended jobs out of the queue, with all that happened to them."""
        with self._database.transaction() as database:
            for job in jobs:
                database.execute("DELETE FROM events WHERE job=?", (job.id,))
                database.execute("DELETE FROM jobs WHERE id=?", (job.id,))

    @staticmethod
    def _last(database: sqlite3.Connection) -> int:
        """The position of the last job."""
        (last,) = database.execute("SELECT coalesce(max(position), 0) FROM jobs").fetchone()
        return int(last)
