"""Claims on jobs: at most one worker has a job, and the job of a dead worker is taken over.

A claim is identified by the job's number of claims and its owner. A worker's writes about its job
succeed only while its claim is valid.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from operator import itemgetter

from longtake.errors import LongtakeError
from longtake.serve.queue.job_database import (
    JobDatabase,
    QueueBusyError,
    QueueError,
    QueueLostError,
)
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.job_rows import add_event, end_job, select_jobs
from longtake.serve.queue.process_identity import Owner
from longtake.serve.queue.retry_policy import Fault

LEASE_S = 60.0
"""Lease length when the owner's liveness is unknown."""

CANCELLED = "by request"

_MOST_CHOICES = 64
"""Number of queued jobs of which the next one is chosen."""


class ClaimLostError(LongtakeError):
    """Another process has taken over the job."""


class Claims:
    """Claims of this process's workers on the jobs of one queue. Thread-safe.

    Every method except :meth:`renew` and :meth:`check` waits while the queue is temporarily
    unusable, if the database retries.

    Args:
        database: The queue's database.

    Attributes:
        owner: Owner recorded with each claim.
    """

    def __init__(self, database: JobDatabase) -> None:
        self.owner = Owner.new_queue()
        self._database = database
        self._held: set[tuple[str, int]] = set()

    def take(
        self,
        engine: str,
        now: float,
        choose: Callable[[Sequence[JobRecord]], JobRecord] = itemgetter(0),
    ) -> JobRecord | None:
        """Claim the next job: a queued one, or one whose worker has died.

        The caller must pass the job to :meth:`release` however its work ends.

        Args:
            engine: Digest of the engine that will render the job.
            now: Seconds since 1970.
            choose: Returns one of the next jobs, of which the first has waited longest.

        Returns:
            The claimed job; None if no job can be claimed at the moment.
        """
        with ExitStack() as undo:
            with self._database.transaction(waits_for=QueueError) as connection:
                job = self._next(connection, engine, now, choose)
                if job is None:
                    return None
                connection.execute(
                    "UPDATE jobs SET state='running', claims=claims+1, owner=?, lease_until=?, "
                    "started_at=?, ended_at=NULL, phase='', error='' WHERE id=?",
                    (self.owner.model_dump_json(), now + LEASE_S, now, job.id),
                )
                add_event(connection, job.id, "running", f"attempt {job.claims + 1}", now)
                claimed = select_jobs(connection, "id=?", job.id)[0]
                held = claimed.id, claimed.claims
                self._held.add(held)  # before the commit: other threads may look right after it
                undo.callback(self._held.discard, held)
            undo.pop_all()
            return claimed

    def _next(
        self,
        connection: sqlite3.Connection,
        engine: str,
        now: float,
        choose: Callable[[Sequence[JobRecord]], JobRecord],
    ) -> JobRecord | None:
        """The next job to claim. Abandoned jobs before it that are being cancelled are ended."""
        while True:
            running = select_jobs(connection, "state='running' AND engine=?", engine)
            abandoned = [each for each in running if self.is_abandoned(each, now)]
            queued = select_jobs(
                connection,
                "state='queued' AND engine=? AND not_before<=? ORDER BY position, id LIMIT ?",
                engine,
                now,
                _MOST_CHOICES,
            )
            candidates = sorted([*abandoned, *queued], key=lambda each: each.position)
            if not candidates:
                return None
            job = choose(candidates)
            if job.state == "running":
                add_event(connection, job.id, "taken over", "its worker has ended", now)
            if not job.cancelling:
                return job
            end_job(connection, job.id, "cancelled", now, CANCELLED)

    def is_abandoned(self, job: JobRecord, now: float) -> bool:
        """Whether the worker of a running job has died, or has let its lease expire."""
        if job.owner is None:
            return True
        if job.owner == self.owner:
            return (job.id, job.claims) not in self._held
        ended = job.owner.ended(self.owner)
        return job.lease_until < now if ended is None else ended

    def renew(self, job: JobRecord, phase: str, steps_done: int, now: float) -> bool:
        """Extend the lease on a job and record its progress.

        Returns:
            Whether cancellation was requested.

        Raises:
            ClaimLostError: Another process has taken over the job.
        """
        with self._claimed(job) as connection:
            connection.execute(
                "UPDATE jobs SET lease_until=?, phase=?, steps_done=? WHERE id=?",
                (now + LEASE_S, phase, steps_done, job.id),
            )
            return select_jobs(connection, "id=?", job.id)[0].cancelling

    def check(self, job: JobRecord) -> None:
        """Check that a claim is valid. In a lost queue it is, since nobody else can claim jobs.

        Raises:
            ClaimLostError: Another process has taken over the job.
        """
        with suppress(QueueLostError), self._claimed(job, waits_for=QueueBusyError):
            pass

    def release(self, job: JobRecord, now: float) -> None:
        """End a claim. A job that has not ended is queued again.

        If that cannot be written, the next :meth:`take` finds the job abandoned.
        """
        self._held.discard((job.id, job.claims))
        with suppress(LongtakeError):
            self.requeue(job, "its worker has ended", now)

    def finish(self, job: JobRecord, seconds: dict[str, float], now: float, text: str = "") -> None:
        """Mark a job as done after its output is published.

        Raises:
            ClaimLostError: Another process has taken over the job.
        """
        with self._claimed(job, waits_for=QueueError) as connection:
            end_job(connection, job.id, "done", now, text, seconds)

    def fail(self, job: JobRecord, error: str, now: float) -> None:
        """Mark a job as failed.

        Raises:
            ClaimLostError: Another process has taken over the job.
        """
        with self._claimed(job, waits_for=QueueError) as connection:
            end_job(connection, job.id, "failed", now, error)

    def finish_cancelled(self, job: JobRecord, now: float) -> None:
        """Mark a job as cancelled after its rendering has stopped.

        Raises:
            ClaimLostError: Another process has taken over the job.
        """
        with self._claimed(job, waits_for=QueueError) as connection:
            end_job(connection, job.id, "cancelled", now, CANCELLED)

    def requeue(self, job: JobRecord, reason: str, now: float) -> None:
        """Queue a job again without counting a fault.

        Raises:
            ClaimLostError: Another process has taken over the job.
        """
        with self._claimed(job, waits_for=QueueError) as connection:
            connection.execute("UPDATE jobs SET state='queued', owner=NULL WHERE id=?", (job.id,))
            add_event(connection, job.id, "waits", reason, now)

    def retry_later(self, job: JobRecord, fault: Fault, now: float) -> None:
        """Queue a job again after a fault.

        Args:
            job: The claimed job.
            fault: A fault that allows another attempt.
            now: Seconds since 1970.

        Raises:
            ClaimLostError: Another process has taken over the job.
        """
        assert fault.retry_delay_s is not None
        not_before = now + fault.retry_delay_s
        with self._claimed(job, waits_for=QueueError) as connection:
            connection.execute(
                "UPDATE jobs SET state='queued', owner=NULL, faults=?, fault_step=?, sparing=?, "
                "not_before=?, error=? WHERE id=?",
                (
                    fault.count,
                    fault.step,
                    int(fault.low_memory),
                    not_before,
                    fault.message,
                    job.id,
                ),
            )
            add_event(connection, job.id, "fault", fault.message, now)

    @contextmanager
    def _claimed(
        self, job: JobRecord, *, waits_for: type[QueueError] | tuple[()] = ()
    ) -> Iterator[sqlite3.Connection]:
        """A transaction within which the claim on a job is valid."""
        with self._database.transaction(waits_for) as connection:
            row = connection.execute(
                "SELECT 1 FROM jobs WHERE id=? AND claims=? AND state='running' AND owner=?",
                (job.id, job.claims, self.owner.model_dump_json()),
            )
            if row.fetchone() is None:
                raise ClaimLostError(f"{job.id} was taken over by another process")
            yield connection
