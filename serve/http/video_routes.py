"""The routes of OpenAI's videos API."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from longtake.errors import RefusedInputError
from longtake.serve.http.events import VideoEvents
from longtake.serve.http.openapi import CONTENT, CREATE, EVENTS, VIDEO
from longtake.serve.http.picture_upload import PictureLimit
from longtake.serve.http.problems import Problem
from longtake.serve.http.request.content import request_content
from longtake.serve.http.request.openai_request import field_error, parse_submission
from longtake.serve.http.video_files import drop_invalid_range, frames_response, video_response
from longtake.serve.http.video_object import VideoObjects
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.submissions import BeingDeletedError, QueueFullError
from longtake.serve.service.service import VideoService
from longtake.serve.service.submission import PICTURE_FIELDS

_MAX_IDEMPOTENCY_KEY_LENGTH = 255
_MAX_WRITERS = 16

ResultT = TypeVar("ResultT")


class VideoRoutes:
    """Handlers of the videos API.

    Args:
        service: The service.
        objects: Converts jobs to video objects.
        picture_limit: Limit on concurrent decoding of pictures.
    """

    def __init__(
        self, service: VideoService, objects: VideoObjects, picture_limit: PictureLimit
    ) -> None:
        self._service = service
        self._objects = objects
        self._picture_limit = picture_limit
        # Writers may wait for another process's lock on the queue. Readers use other threads.
        self._writers = CapacityLimiter(_MAX_WRITERS)

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter()
        videos, video = "/v1/videos", "/v1/videos/{video_id}"
        router.post(videos, response_model=None, openapi_extra=CREATE, responses=VIDEO)(self.create)
        router.get(videos, response_model=None)(self.list_videos)
        router.get(video, response_model=None, responses=VIDEO)(self.retrieve)
        router.delete(video, response_model=None)(self.delete)
        content = f"{video}/content"
        router.head(content, response_model=None, include_in_schema=False)(self.content)
        router.get(content, response_class=Response, responses=CONTENT)(self.content)
        self._add_events(router, f"{video}/events")
        return router

    async def create(self, request: Request) -> Response:
        """Queue a video."""
        key = request.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= _MAX_IDEMPOTENCY_KEY_LENGTH:
            raise Problem(
                400, f"Idempotency-Key must have 1 to {_MAX_IDEMPOTENCY_KEY_LENGTH} characters"
            )
        client = request.scope["client_label"]
        async with request_content(request) as (values, uploads):
            create = partial(self._create, values, uploads, client, key)
            if not uploads and all(values.get(each) is None for each in PICTURE_FIELDS.values()):
                return await self._write(create)
            return await self._picture_limit.run(request, create)

    def list_videos(
        self, after: str | None = None, limit: int = 20, order: str = "desc"
    ) -> Response:
        """List videos, page by page."""
        if not 1 <= limit <= 100:
            raise Problem(400, f"limit={limit} must be 1 to 100", param="limit")
        if order not in ("asc", "desc"):
            raise Problem(400, f"order={order[:60]!r} must be asc or desc", param="order")
        last = None if after is None else self._service.position(after)
        if after is not None and last is None:
            raise Problem(400, f"after={after[:80]!r} is not a video", param="after")
        jobs, more = self._service.store.page(last, limit, newest_first=order == "desc")
        left = self._service.eta.seconds_left()
        content = {
            "object": "list",
            "data": [self._objects.video(job, left) for job in jobs],
            "first_id": jobs[0].id if jobs else None,
            "last_id": jobs[-1].id if jobs else None,
            "has_more": more,
        }
        return JSONResponse(content)

    def retrieve(self, video_id: str) -> Response:
        """Retrieve the state of a video."""
        job = self._find(video_id)
        response = JSONResponse(self._objects.video(job))
        if not job.ended:
            response.headers["openai-poll-after-ms"] = "1000"
        return response

    async def delete(self, video_id: str) -> Response:
        """Cancel a video if it is not done yet, and delete it."""
        await self._write(lambda: self._service.delete(self._find(video_id)))
        return JSONResponse({"id": video_id, "object": "video.deleted", "deleted": True})

    def content(
        self, request: Request, video_id: str, variant: str = "video", index: int = 0
    ) -> Response:
        """Download a video or a part of it, or a picture of some frames."""
        job = self._find(video_id)
        drop_invalid_range(request)
        if variant in ("thumbnail", "spritesheet"):
            progress = self._service.progress.of_job(job.id)
            thumbnails = b"" if progress is None else progress.thumbnails
            return frames_response(job, thumbnails, self._service.strip(job), variant)
        if variant != "video":
            raise Problem(
                400,
                f"variant={variant[:60]!r} must be video, thumbnail or spritesheet",
                param="variant",
            )
        return video_response(job, self._service.outputs(job), index)

    def _add_events(self, router: APIRouter, path: str) -> None:
        def find(video_id: str, response: Response) -> JobRecord:
            """Run before the response begins, while it can still be a 404."""
            response.headers["cache-control"] = "no-store"
            return self._find(video_id)

        found = Depends(find)

        @router.get(path, response_class=EventSourceResponse, responses=EVENTS)
        async def events(
            request: Request, job: JobRecord = found
        ) -> AsyncIterator[ServerSentEvent]:
            """Stream every finished step and phase as server-sent events."""
            follower = VideoEvents(self._service.store, self._service.progress, self._objects)
            async for event in follower.follow(job, request.headers.get("last-event-id", "")):
                yield event

    def _find(self, video_id: str) -> JobRecord:
        job = self._service.store.find(video_id)
        if job is None:
            raise Problem(404, f"there is no video {video_id[:80]!r}", code="not_found")
        return job

    async def _write(self, act: Callable[[], ResultT]) -> ResultT:
        return await to_thread.run_sync(act, limiter=self._writers)

    def _create(
        self, values: dict[str, Any], uploads: dict[str, bytes], client: str, key: str | None
    ) -> Response:
        service = self._service
        try:
            submission = parse_submission(values, uploads, service.model.name, service.engine.spec)
            job = service.admission.submit(submission, client=client, idempotency_key=key)
        except QueueFullError as error:
            wait_s = math.ceil(service.eta.seconds_until_room())
            headers = {"retry-after": str(wait_s)}
            raise Problem(429, str(error), code="queue_full", headers=headers) from error
        except BeingDeletedError as error:
            raise Problem(409, str(error), param="Idempotency-Key", code="conflict") from error
        except RefusedInputError as error:
            raise Problem.of(field_error(error, values)) from error
        return JSONResponse(self._objects.video(job))
