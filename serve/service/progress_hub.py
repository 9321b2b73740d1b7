"""What is known of jobs while they run: every step and phase, and the frames decoded so far."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from longtake.engine.video import Metadata
from longtake.pipelines.progress import Progress
from longtake.serve.queue.job_records import JobRecord, State
from longtake.serve.runner.watcher import Watcher

logger = logging.getLogger(__name__)

_ENDED_KEPT = 32
"""Jobs that have ended, of which it is still known how they got there."""


@dataclass
class Course:
    """How a job got on, as far as this process saw it.

    Attributes:
        events: every step, tile and phase, in order.
        picture: the frames so far, in small, as a JPEG.
        steps_done: of denoising; None before it begins.
        first_step, last_step: finished steps, and when they were told, in seconds of
            :func:`time.monotonic`; None before denoising begins.
    """

    events: list[Progress] = field(default_factory=list)
    picture: bytes = b""
    steps_done: int | None = None
    first_step: tuple[int, float] | None = None
    last_step: tuple[int, float] | None = None

    @property
    def step_s(self) -> float | None:
        """Seconds a step, of those that were seen; None before one was."""
        if self.first_step is None or self.last_step is None:
            return None
        (first, begun), (last, ended) = self.first_step, self.last_step
        return (ended - begun) / (last - first) if last > first and ended > begun else None

    def step(self, done: int) -> None:
        """So many steps of denoising are finished."""
        self.steps_done = done
        if self.first_step is None:
            self.first_step = done, time.monotonic()
        if self.last_step is None or self.last_step[0] != done:
            self.last_step = done, time.monotonic()

    @property
    def now(self) -> Progress:
        """The last of the events."""
        return self.events[-1] if self.events else Progress("")


class ProgressHub(Watcher):
    """Is told how jobs get on, and tells those who follow. Threads may share it.

    Args:
        rendered: is told of each job whose videos have their names, and what they cost.
        ended: is told of each state in which a job ends.

    Attributes:
        stopping: nobody is to follow any more.
        last: what the last video cost.
        said: the last note.
    """

    def __init__(
        self,
        rendered: Callable[[JobRecord, Metadata], None],
        ended: Callable[[State], None],
    ) -> None:
        self._rendered = rendered
        self._ended = ended
        self.stopping = False
        self._lock = threading.Lock()
        self._courses: OrderedDict[str, Course] = OrderedDict()
        self._followers: dict[asyncio.Event, tuple[str, asyncio.AbstractEventLoop]] = {}
        self.last: Metadata | None = None
        self.said = ""

    def course(self, job: str) -> Course | None:
        """How a job got on; None if it was not begun here, or long ago."""
        with self._lock:
            return self._courses.get(job)

    def progress(self, job: str, progress: Progress) -> None:
        """A job got on."""
        with self._lock:
            course = self._courses.setdefault(job, Course())
            if progress.phase == "denoising":
                course.step(progress.done)
            if not course.events or course.events[-1] != progress:
                course.events.append(progress)
        self.wake(job)

    def state(self, job: str, state: State, text: str) -> None:
        """A job is in another state."""
        with self._lock:
            if state == "running":
                self._courses[job] = Course()
                while len(self._courses) > _ENDED_KEPT:
                    self._courses.popitem(last=False)
        if state in ("done", "failed", "cancelled"):
            self._ended(state)
        if text:
            logger.info("%s is %s: %s", job, state, text)
        self.wake(job)

    def note(self, text: str) -> None:
        """Something that is worth a line."""
        logger.info("%s", text)
        self.said = text.partition("\n")[0]

    def frames(self, job: str, picture: bytes) -> None:
        """More frames of a job are decoded."""
        with self._lock:
            if course := self._courses.get(job):
                course.picture = picture
        self.wake(job)

    def rendered(self, job: JobRecord, metadata: Metadata) -> None:
        """A job's videos have their names."""
        self.last = metadata
        self._rendered(job, metadata)

    def follow(self, job: str) -> asyncio.Event:
        """An event of the running loop that is set whenever something is new of a job, until
        :meth:`leave`."""
        event = asyncio.Event()
        with self._lock:
            self._followers[event] = job, asyncio.get_running_loop()
        return event

    def leave(self, event: asyncio.Event) -> None:
        """Tell someone no more."""
        with self._lock:
            self._followers.pop(event, None)

    def stop(self) -> None:
        """All who follow go away."""
        self.stopping = True
        with self._lock:
            jobs = {job for job, _ in self._followers.values()}
        for job in jobs:
            self.wake(job)

    def wake(self, job: str) -> None:
        """Something is new of a job."""
        with self._lock:
            followers = [
                (event, loop) for event, (name, loop) in self._followers.items() if name == job
            ]
        for event, loop in followers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
