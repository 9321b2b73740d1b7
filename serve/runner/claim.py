"""One claim on a job, kept up while it is worked on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from longtake.errors import LongtakeError, Stopped
from longtake.pipelines.progress import Progress
from longtake.serve.queue.job_database import QueueLostError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.job_store import LEASE_S, ClaimLostError, JobStore

logger = logging.getLogger(__name__)

_EVERY_S = 1.0


class Claim:
    """Says, every second, that its worker still works on a job; hears that it is to end.

    A context; its thread ends with it.

    Args:
        store: of the job.
        job: as it was claimed.
        clock: seconds since 1970.
        stop: set where the whole batch is to end.
    """

    def __init__(
        self,
        store: JobStore,
        job: JobRecord,
        clock: Callable[[], float],
        stop: threading.Event,
    ) -> None:
        self.job = job
        self.cancelled = False
        self.lost = False
        self._store = store
        self._clock = clock
        self._stop = stop
        self._progress = Progress("")
        self._steps_done = job.steps_done
        self._renewed_at = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)

    def __enter__(self) -> Claim:
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
        """The job got on.

        Raises:
            Stopped: it is to end.
        """
        self._progress = progress
        if progress.phase == "denoising":
            self._steps_done = progress.done
        if self.stop_requested():
            raise Stopped("the job is to end")

    def stop_requested(self) -> bool:
        """Whether it is to end."""
        return self._stop.is_set() or self.cancelled or self.lost

    def check(self) -> None:
        """Raises ClaimLostError if the job is another process's by now."""
        self._store.check(self.job)

    def _keep_up(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self.cancelled = self._store.renew(
                    self.job, self._progress.phase, self._steps_done, self._clock()
                )
                self._renewed_at = self._clock()
            except ClaimLostError:
                self.lost = True
                return
            except QueueLostError:  # it goes on: nobody else can have it
                continue
            except LongtakeError as error:  # a full disk, say: there may be room before long
                if self._clock() - self._renewed_at > LEASE_S / 2:
                    logger.warning("%s: %s", self.job.id, error)
                    self._renewed_at = self._clock()
