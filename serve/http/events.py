"""A job's steps and phases as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.concurrency import run_in_threadpool

from longtake.pipelines.progress import Progress
from longtake.serve.http.objects import video_object
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.service import VideoService

_LOOK_AGAIN_S = 1.0
_SIGN_OF_LIFE_S = 15.0


async def events_of(service: VideoService, job: JobRecord, last: str) -> AsyncIterator[bytes]:
    """First the video; then what happened and happens; last the video as it ended: ``completed``,
    ``failed``, ``cancelled`` or ``deleted``.

    Progress that this process did not see, of an earlier attempt say, is not told again.

    Args:
        last: id of the last event that the client has; of another attempt, or empty, it has none.
    """
    told, sent_at = 0, time.monotonic()
    course_told, attempt = None, 0
    yield _event("video", await run_in_threadpool(video_object, service, job))
    news = service.live.follow(job.id)
    try:
        now: JobRecord | None = job
        state = job.state
        while not service.live.stopping:
            news.clear()
            with suppress(QueueError):  # what happens is told all the same
                now = await run_in_threadpool(service.store.found, job.id)
            course = service.live.course(job.id)
            if course is not course_told:  # another attempt, which begins to count anew
                attempt = job.claims if now is None else now.claims
                told, course_told = _number_after(last, attempt), course
            for number in range(told, len(course.events) if course is not None else 0):
                assert course is not None
                yield _event("progress", _told(job, course.events[number]), f"{attempt}-{number}")
                told, sent_at = number + 1, time.monotonic()
            if now is None:
                yield _event("deleted", {"id": job.id, "object": "video.deleted", "deleted": True})
                return
            if now.ended:
                kind = {"done": "completed"}.get(now.state, now.state)
                yield _event(kind, await run_in_threadpool(video_object, service, now))
                return
            if now.state != state:
                state = now.state
                yield _event("video", await run_in_threadpool(video_object, service, now))
            if time.monotonic() - sent_at > _SIGN_OF_LIFE_S:
                yield b": still here\n\n"
                sent_at = time.monotonic()
            try:
                await asyncio.wait_for(news.wait(), _LOOK_AGAIN_S)
            except asyncio.TimeoutError:
                pass
    finally:
        service.live.leave(news)


def _told(job: JobRecord, progress: Progress) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "video.progress",
        "phase": progress.phase,
        "done": progress.done,
        "total": progress.total,
        "detail": progress.detail,
    }


def _number_after(last: str, attempt: int) -> int:
    of, _, number = last.partition("-")
    known = of == str(attempt) and number.isascii() and number.isdecimal() and len(number) < 10
    return int(number) + 1 if known else 0


def _event(kind: str, content: dict[str, Any], name: str | None = None) -> bytes:
    numbered = "" if name is None else f"id: {name}\n"
    return f"{numbered}event: {kind}\ndata: {json.dumps(content)}\n\n".encode()
