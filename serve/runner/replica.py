"""A replica: a group of ranks that renders the jobs of a queue one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from longtake.engine.media.snapshot import drop_snapshot
from longtake.errors import EngineError, RefusedInputError, Stopped, one_line
from longtake.pipelines.runtime.progress import Progress
from longtake.serve.queue.claims import CANCELLED, ClaimLostError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.job_store import JobStore
from longtake.serve.queue.lease import Lease
from longtake.serve.queue.retry_policy import judge_fault
from longtake.serve.runner.job_renderer import JobRenderer, ReplicaSettings
from longtake.serve.runner.lora_order import LoraOrder
from longtake.serve.runner.outputs import (
    is_rendered,
    resume_step,
    snapshot_path,
    sweep_partials,
)
from longtake.serve.runner.queue_writer import QueueWriter, WorkerEndsError
from longtake.serve.runner.ranks import Ranks
from longtake.serve.runner.stages import UNCOUNTED_STAGES
from longtake.serve.runner.watcher import Watcher

_POLL_S = 0.3
_STOPPED = "rendering was stopped"


class Replica:
    """Renders jobs until none is left or ``stop`` is set.

    Args:
        store: The queue.
        ranks: The ranks that render.
        settings: Settings of the replica.
        watcher: Observer of the jobs.
        stop: Set to stop all replicas.

    Attributes:
        failure: Error that ended the replica early; None if there was none.
    """

    def __init__(
        self,
        store: JobStore,
        ranks: Ranks,
        settings: ReplicaSettings,
        watcher: Watcher,
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._ranks = ranks
        self._settings = settings
        self._watcher = watcher
        self._stop = stop
        self._writer = QueueWriter(watcher, stop, forever=settings.batch.watch)
        self._renderer = JobRenderer(store, ranks, settings, watcher, self._writer)
        self._order = LoraOrder()
        self._low_memory_from_pixels: int | None = None
        self.failure: Exception | None = None

    def run(self) -> None:
        """Work on the queue, then end the ranks. Raises nothing; sets ``failure``."""
        try:
            try:
                self._work()
            finally:
                self._ranks.close()
        except Exception as error:
            self.failure = error

    def _work(self) -> None:
        engine = self._settings.engine_digest
        while not self._stop.is_set():
            job = self._writer.write(self._store.claims.take, engine, time.time(), self._next_job)
            if job is not None:
                self._work_on(job)
            elif self._settings.batch.watch or self._store.unfinished(engine):
                self._stop.wait(_POLL_S)  # until a job is added, abandoned, or due for a retry
            else:
                return

    def _next_job(self, waiting: Sequence[JobRecord]) -> JobRecord:
        return self._order.choose(waiting, time.monotonic())

    def _work_on(self, job: JobRecord) -> None:
        """Attempt one job. The claim is released however the attempt ends."""
        try:
            self._watcher.state(job.id, "running", "")
            with Lease(self._store.claims, job, time.time, self._stop) as lease:
                self._attempt(lease)
        except ClaimLostError as error:
            self._watcher.note(str(error))
        finally:
            self._store.claims.release(job, time.time())

    def _attempt(self, lease: Lease) -> None:
        job = lease.job
        try:
            sweep_partials(self._store.folder, job)
            if is_rendered(self._store.folder, job):
                self._finish(job, {}, "it was rendered already")
                return
            self._start_ranks(lease)
            self._render(lease)
        except (ClaimLostError, WorkerEndsError):
            raise
        except Stopped:
            self._end_stopped(lease)
        except RefusedInputError as error:
            self._handle_fault(job, error)
        except Exception as error:
            if lease.stop_requested():  # stopping may have caused the error
                self._end_stopped(lease)
            else:
                self._handle_fault(job, error)

    def _start_ranks(self, lease: Lease) -> None:
        """Start the ranks. If none can be started, requeue the job and end the replica."""
        try:
            self._ranks.start(
                lambda progress: self._progress(lease, progress), lease.stop_requested
            )
        except (EngineError, RefusedInputError) as error:
            self._writer.write(self._store.claims.requeue, lease.job, one_line(error), time.time())
            raise WorkerEndsError(str(error)) from error

    def _render(self, lease: Lease) -> None:
        job = lease.job
        metadata = self._renderer.render(
            lease,
            lambda progress: self._progress(lease, progress),
            low_memory=job.low_memory or self._needs_low_memory(job),
        )
        seconds = {n: round(s, 3) for n, s in metadata.seconds.items() if n not in UNCOUNTED_STAGES}
        self._finish(job, seconds)
        self._watcher.rendered(job, metadata)

    def _progress(self, lease: Lease, progress: Progress) -> None:
        self._watcher.progress(lease.job.id, progress)
        lease.progress(progress)

    def _finish(self, job: JobRecord, seconds: dict[str, float], text: str = "") -> None:
        self._writer.write(self._store.claims.finish, job, seconds, time.time(), text)
        self._drop_snapshot(job)
        self._watcher.state(job.id, "done", text)

    def _end_stopped(self, lease: Lease) -> None:
        """End a cancelled job; queue it again if the replica stops."""
        job = lease.job
        if lease.cancelled:
            self._writer.write(self._store.claims.finish_cancelled, job, time.time())
            self._drop_snapshot(job)
            self._watcher.state(job.id, "cancelled", CANCELLED)
        else:
            self._writer.write(self._store.claims.requeue, job, _STOPPED, time.time())
            self._watcher.state(job.id, "queued", _STOPPED)

    def _drop_snapshot(self, job: JobRecord) -> None:
        with suppress(OSError):  # the next start in this folder removes it
            drop_snapshot(snapshot_path(self._store.folder, job))

    def _handle_fault(self, job: JobRecord, error: Exception) -> None:
        """Queue a job again after a fault, or let it fail."""
        step = resume_step(self._store.folder, job)
        fault = judge_fault(job, error, step, self._settings.batch.attempts)
        if fault.retry_delay_s is None:
            self._writer.write(self._store.claims.fail, job, fault.message, time.time())
            self._watcher.state(job.id, "failed", fault.message)
            return
        if fault.low_memory and not job.low_memory:
            self._low_memory_from_pixels = _pixels(job)
        self._writer.write(self._store.claims.retry_later, job, fault, time.time())
        self._watcher.state(job.id, "queued", fault.message.partition("\n")[0])

    def _needs_low_memory(self, job: JobRecord) -> bool:
        """Whether a job of this size or smaller has run out of memory while decoding."""
        least = self._low_memory_from_pixels
        return least is not None and _pixels(job) >= least


def _pixels(job: JobRecord) -> int:
    request = job.request
    return request.num_videos * request.num_frames * request.height * request.width
