"""Progress of jobs in memory: steps, phases, and thumbnails of the frames decoded so far."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from longtake.engine.metadata import Metadata
from longtake.pipelines.runtime.progress import Progress
from longtake.serve.queue.job_records import JobRecord, State
from longtake.serve.runner.watcher import Watcher

logger = logging.getLogger(__name__)

_JOBS_KEPT = 32
"""Number of jobs whose progress is kept."""


@dataclass
class JobProgress:
    """Progress of one attempt at a job, as observed by this process.

    Attributes:
        events: Every step, tile and phase, in order.
        thumbnails: A JPEG of the frames decoded so far, side by side; empty before the first.
        steps_done: Finished denoising steps; None before denoising begins.
        first_step: Number of finished steps, and :func:`time.monotonic` in seconds, at the first
            report of denoising; None before.
        last_step: The same at the latest report of another number.
    """

    events: list[Progress] = field(default_factory=list)
    thumbnails: bytes = b""
    steps_done: int | None = None
    first_step: tuple[int, float] | None = None
    last_step: tuple[int, float] | None = None

    @property
    def step_s(self) -> float | None:
        """Mean seconds per step; None before the first measured step."""
        if self.first_step is None or self.last_step is None:
            return None
        (first, began), (last, ended) = self.first_step, self.last_step
        return (ended - began) / (last - first) if last > first and ended > began else None

    @property
    def latest(self) -> Progress:
        """The latest event; an empty phase before the first."""
        return self.events[-1] if self.events else Progress("")

    def record_step(self, done: int) -> None:
        """Record the number of finished steps."""
        self.steps_done = done
        if self.first_step is None:
            self.first_step = done, time.monotonic()
        if self.last_step is None or self.last_step[0] != done:
            self.last_step = done, time.monotonic()


class ProgressHub(Watcher):
    """Collects the progress of jobs and wakes their followers. Thread-safe.

    Args:
        on_rendered: Called with each finished job and its metadata.
        on_ended: Called with the final state of each job.

    Attributes:
        stopping: Whether the server is stopping; followers must end.
        last: Metadata of the last finished video; None before the first.
        last_note: The latest note.
    """

    def __init__(
        self,
        on_rendered: Callable[[JobRecord, Metadata], None],
        on_ended: Callable[[State], None],
    ) -> None:
        self._on_rendered = on_rendered
        self._on_ended = on_ended
        self.stopping = False
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, JobProgress] = OrderedDict()
        self._followers: dict[asyncio.Event, tuple[str, asyncio.AbstractEventLoop]] = {}
        self.last: Metadata | None = None
        self.last_note = ""

    def of_job(self, job: str) -> JobProgress | None:
        """Progress of a job's latest attempt; None if this process has not kept it."""
        with self._lock:
            return self._jobs.get(job)

    def progress(self, job: str, progress: Progress) -> None:
        """Record progress."""
        with self._lock:
            record = self._jobs.setdefault(job, JobProgress())
            if progress.phase == "denoising":
                record.record_step(progress.done)
            if not record.events or record.events[-1] != progress:
                record.events.append(progress)
        self.wake(job)

    def state(self, job: str, state: State, text: str) -> None:
        """Record a change of state; a job that starts running starts a new record."""
        with self._lock:
            if state == "running":
                self._jobs[job] = JobProgress()
                while len(self._jobs) > _JOBS_KEPT:
                    self._jobs.popitem(last=False)
        if state in ("done", "failed", "cancelled"):
            self._on_ended(state)
        if text:
            logger.info("%s is %s: %s", job, state, text)
        self.wake(job)

    def note(self, text: str) -> None:
        """Log a message, and keep its first line for the page."""
        logger.info("%s", text)
        self.last_note = text.partition("\n")[0]

    def frames(self, job: str, picture: bytes) -> None:
        """Keep the thumbnails of the frames decoded so far."""
        with self._lock:
            if record := self._jobs.get(job):
                record.thumbnails = picture
        self.wake(job)

    def rendered(self, job: JobRecord, metadata: Metadata) -> None:
        """Keep the metadata of the last finished video."""
        self.last = metadata
        self._on_rendered(job, metadata)

    def follow(self, job: str) -> asyncio.Event:
        """An event that is set on each change of a job, until :meth:`unfollow`.

        Call it in the event loop that waits for the event.
        """
        event = asyncio.Event()
        with self._lock:
            self._followers[event] = job, asyncio.get_running_loop()
        return event

    def unfollow(self, event: asyncio.Event) -> None:
        """Stop setting an event."""
        with self._lock:
            self._followers.pop(event, None)

    def stop(self) -> None:
        """Have all followers end."""
        self.stopping = True
        with self._lock:
            jobs = {job for job, _ in self._followers.values()}
        for job in jobs:
            self.wake(job)

    def wake(self, job: str) -> None:
        """Wake the followers of a job."""
        with self._lock:
            followers = [
                (event, loop) for event, (name, loop) in self._followers.items() if name == job
            ]
        for event, loop in followers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
