"""Renewal of the claim on a job while a worker renders it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from longtake.errors import LongtakeError, Stopped
from longtake.pipelines.runtime.progress import Progress
from longtake.serve.queue.claims import LEASE_S, ClaimLostError, Claims
from longtake.serve.queue.job_database import QueueLostError
from longtake.serve.queue.job_records import JobRecord

logger = logging.getLogger(__name__)

_RENEWAL_PERIOD_S = 1.0


class Lease:
    """Renews a claim every second in a thread, and collects reasons to stop.

    A context manager: the thread runs within the ``with`` block.

    Args:
        claims: Claims on the job's queue.
        job: The claimed job.
        clock: Returns the time in seconds since 1970.
        stop: Set to stop all workers.

    Attributes:
        job: The claimed job.
        cancelled: Whether cancellation of the job was requested.
        lost: Whether another process has taken over the job.
    """

    def __init__(
        self,
        claims: Claims,
        job: JobRecord,
        clock: Callable[[], float],
        stop: threading.Event,
    ) -> None:
        self.job = job
        self.cancelled = False
        self.lost = False
        self._claims = claims
        self._clock = clock
        self._stop = stop
        self._progress = Progress("")
        self._steps_done = job.steps_done
        self._renewed_at = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self, progress: Progress) -> None:
        """Report the job's progress, which the next renewal records.

        Raises:
            Stopped: The worker must stop.
        """
        self._progress = progress
        if progress.phase == "denoising":
            self._steps_done = progress.done
        if self.stop_requested():
            raise Stopped("the job was stopped")

    def stop_requested(self) -> bool:
        """Whether the worker must stop."""
        return self._stop.is_set() or self.cancelled or self.lost

    def check(self) -> None:
        """Check that the claim is still valid.

        Raises:
            ClaimLostError: Another process has taken over the job.
        """
        self._claims.check(self.job)

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(_RENEWAL_PERIOD_S):
            try:
                self.cancelled = self._claims.renew(
                    self.job, self._progress.phase, self._steps_done, self._clock()
                )
                self._renewed_at = self._clock()
            except ClaimLostError:
                self.lost = True
                return
            except QueueLostError:  # nobody else can claim the job
                continue
            except LongtakeError as error:  # probably a full disk, which may be temporary
                if self._clock() - self._renewed_at > LEASE_S / 2:
                    logger.warning("%s: %s", self.job.id, error)
                    self._renewed_at = self._clock()
