"""Progress of a video as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from longtake.pipelines.runtime.progress import Progress
from longtake.serve.http.video_object import VideoObjects
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.submissions import Submissions
from longtake.serve.service.progress_hub import JobProgress, ProgressHub

_POLL_S = 1.0


class VideoEvents:
    """Event stream of a video for one client.

    The first event is the video. Progress and changes of state follow. The last event is the final
    state: ``completed``, ``failed``, ``cancelled`` or ``deleted``. Progress events have ids, from
    which a client that reconnects resumes.

    Args:
        store: The job queue.
        progress: Progress of the jobs.
        objects: Converts jobs to video objects.
    """

    def __init__(self, store: Submissions, progress: ProgressHub, objects: VideoObjects) -> None:
        self._store = store
        self._progress = progress
        self._objects = objects
        self._record: JobProgress | None = None
        self._attempt = 0
        self._next = 0

    async def follow(self, job: JobRecord, last_event_id: str) -> AsyncIterator[ServerSentEvent]:
        """Yield events until the video has ended or the server stops.

        Only progress that this process observed is sent.

        Args:
            job: The job.
            last_event_id: Id of the last event that the client received; empty if none.
        """
        yield await self._video("video", job)
        changed = self._progress.follow(job.id)
        try:
            current: JobRecord | None = job
            state = job.state
            while not self._progress.stopping:
                changed.clear()
                with suppress(QueueError):  # progress is known even while the queue is unusable
                    current = await run_in_threadpool(self._store.find, job.id)
                for event in self._new_progress(current or job, last_event_id):
                    yield event
                if current is None:
                    deleted = {"id": job.id, "object": "video.deleted", "deleted": True}
                    yield ServerSentEvent(event="deleted", data=deleted)
                    return
                if current.ended:
                    name = {"done": "completed"}.get(current.state, current.state)
                    yield await self._video(name, current)
                    return
                if current.state != state:
                    state = current.state
                    yield await self._video("video", current)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), _POLL_S)
        finally:
            self._progress.unfollow(changed)

    async def _video(self, event: str, job: JobRecord) -> ServerSentEvent:
        return ServerSentEvent(event=event, data=await run_in_threadpool(self._objects.video, job))

    def _new_progress(self, job: JobRecord, last_event_id: str) -> list[ServerSentEvent]:
        """Progress events since the last call."""
        record = self._progress.of_job(job.id)
        if record is not self._record:  # another attempt; its events are numbered from 0
            self._record, self._attempt = record, job.claims
            self._next = _number_after(last_event_id, self._attempt)
        if record is None:
            return []
        first, self._next = self._next, max(self._next, len(record.events))
        return [
            ServerSentEvent(
                event="progress",
                data=_progress_object(job, record.events[number]),
                id=f"{self._attempt}-{number}",
            )
            for number in range(first, self._next)
        ]


def _progress_object(job: JobRecord, progress: Progress) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "video.progress",
        "phase": progress.phase,
        "done": progress.done,
        "total": progress.total,
        "detail": progress.detail,
    }


def _number_after(last_event_id: str, attempt: int) -> int:
    """Number of the next event to send; 0 if the client's last event is of another attempt."""
    last_attempt, _, number = last_event_id.partition("-")
    valid = number.isascii() and number.isdecimal() and len(number) < 10
    return int(number) + 1 if valid and last_attempt == str(attempt) else 0
