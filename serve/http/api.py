"""The HTTP API: OpenAI's videos, and what those who run a server want to know."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from longtake.errors import EngineError, RefusedInputError
from longtake.serve.http.events import events_of
from longtake.serve.http.objects import video_object
from longtake.serve.http.openai_request import refused
from longtake.serve.http.openapi import CONTENT, CREATE, ERRORS, EVENTS, METRICS, VIDEO
from longtake.serve.http.problems import Problem
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.submissions import BeingDeletedError, QueueFullError
from longtake.serve.runner.filmstrip import middle_of
from longtake.serve.service.metrics import CONTENT_TYPE
from longtake.serve.service.service import VideoService
from longtake.version import __version__

_MOST_FIELDS = 64
_MOST_TEXT = 512 * 1024
_LONGEST_KEY = 255
_MOST_WRITERS = 16
_RANGE = re.compile(r"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})(, ?(\d{1,18}-\d{0,18}|-\d{1,18})){0,15}")
_MEDIA = {".mp4": "video/mp4", ".safetensors": "application/octet-stream"}


ResultT = TypeVar("ResultT")


def api_of(service: VideoService, page: FastAPI | None = None) -> FastAPI:
    """The application; it starts and closes the service, and a page with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        try:
            if page is None:
                yield
            else:
                async with page.router.lifespan_context(page):
                    yield
        finally:
            await run_in_threadpool(service.close)

    app = FastAPI(
        redirect_slashes=False,
        title="longtake",
        version=__version__,
        summary="Videos from diffusion transformers, as OpenAI's videos API has them",
        lifespan=lifespan,
        docs_url=None,  # a page that loads scripts from elsewhere
        redoc_url=None,
        responses=ERRORS,
    )
    _add_errors(app)
    _add_videos(app, service)
    _add_state(app, service)
    return app


def told_of(error: EngineError) -> str:
    """What clients are told of what the server cannot do now; paths are in its log alone."""
    why = error.summary if isinstance(error, QueueError) else "a file cannot be written"
    return f"{why}: try again later"


def _add_errors(app: FastAPI) -> None:
    """Every error in one shape."""

    @app.exception_handler(HTTPException)
    async def problem(request: Request, error: HTTPException) -> Response:
        if isinstance(error, Problem):
            return error.answer()
        headers = dict(error.headers or {})
        return Problem(error.status_code, str(error.detail), headers=headers).answer()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return Problem(400, f"{name}: {first['msg']}", param=name).answer()

    @app.exception_handler(RefusedInputError)
    async def refusal(request: Request, error: RefusedInputError) -> Response:
        return Problem(400, str(error)).answer()

    @app.exception_handler(QueueError)
    async def unusable(request: Request, error: QueueError) -> Response:
        headers = {"retry-after": "5"}
        return Problem(503, told_of(error), code="queue_unavailable", headers=headers).answer()

    @app.exception_handler(EngineError)
    async def failed(request: Request, error: EngineError) -> Response:
        return Problem(503, told_of(error)).answer()

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return Problem(500, "a fault of the server, which is in its log").answer()


def _add_videos(app: FastAPI, service: VideoService) -> None:
    writers = CapacityLimiter(_MOST_WRITERS)

    async def writing(act: Callable[..., ResultT], *args: Any) -> ResultT:
        """Act in a thread of those that may wait for another process's write lock: readers have
        the others."""
        return await to_thread.run_sync(act, *args, limiter=writers)

    def found(video_id: str) -> JobRecord:
        job = service.store.found(video_id)
        if job is None:
            raise Problem(404, f"there is no video {video_id[:80]!r}", code="not_found")
        return job

    @app.post("/v1/videos", response_model=None, openapi_extra=CREATE, responses=VIDEO)
    async def create(request: Request) -> Response:
        """Queue a video."""
        once = request.headers.get("idempotency-key")
        if once is not None and not 1 <= len(once) <= _LONGEST_KEY:
            raise Problem(400, f"Idempotency-Key must have 1 to {_LONGEST_KEY} letters")
        asker = request.scope.get("asker") or ""
        async with _sent(request) as (values, upload):
            create = partial(_created, service, values, upload, asker, once)
            if upload is None and values.get("input_reference") is None:
                return await writing(create)
            return await service.pictures.turns.take(request, create)

    @app.get("/v1/videos", response_model=None)
    def listed(after: str | None = None, limit: int = 20, order: str = "desc") -> Response:
        """The videos, page by page."""
        if not 1 <= limit <= 100:
            raise Problem(400, f"limit={limit} must be 1 to 100", param="limit")
        if order not in ("asc", "desc"):
            raise Problem(400, f"order={order[:60]!r} must be asc or desc", param="order")
        last = None if after is None else service.position_of(after)
        if after is not None and last is None:
            raise Problem(400, f"after={after[:80]!r} is no video", param="after")
        jobs, more = service.store.page(last, limit, newest_first=order == "desc")
        left = service.pace.seconds_left()
        content = {
            "object": "list",
            "data": [video_object(service, job, left) for job in jobs],
            "first_id": jobs[0].id if jobs else None,
            "last_id": jobs[-1].id if jobs else None,
            "has_more": more,
        }
        return JSONResponse(content)

    @app.get("/v1/videos/{video_id}", response_model=None, responses=VIDEO)
    def retrieved(video_id: str) -> Response:
        """How a video stands."""
        job = found(video_id)
        answer = JSONResponse(video_object(service, job))
        if not job.ended:
            answer.headers["openai-poll-after-ms"] = "1000"
        return answer

    @app.delete("/v1/videos/{video_id}", response_model=None)
    async def deleted(video_id: str) -> Response:
        """Cancel a video if it is not there yet, and delete it."""
        await writing(lambda: service.delete(found(video_id)))
        return JSONResponse({"id": video_id, "object": "video.deleted", "deleted": True})

    @app.head("/v1/videos/{video_id}/content", response_model=None, include_in_schema=False)
    @app.get("/v1/videos/{video_id}/content", response_class=Response, responses=CONTENT)
    def content(
        request: Request, video_id: str, variant: str = "video", index: int = 0
    ) -> Response:
        """A video's file, or parts of it; or pictures of it."""
        job = found(video_id)
        _drop_odd_range(request)
        if variant in ("thumbnail", "spritesheet"):
            return _pictures(service, job, variant)
        if variant != "video":
            raise Problem(
                400,
                f"variant={variant[:60]!r} must be video, thumbnail or spritesheet",
                param="variant",
            )
        if job.state != "done":
            raise Problem(404, f"{job.id} is not done yet: it is {job.state}", code="not_ready")
        paths = service.outputs(job)
        if not 0 <= index < len(paths):
            raise Problem(400, f"index={index} must be 0 to {len(paths) - 1}", param="index")
        path = paths[index]
        if not path.is_file():
            raise Problem(404, f"the file of {job.id} is gone", code="not_found")
        return FileResponse(
            path,
            media_type=_MEDIA[path.suffix],
            filename=path.name,
            content_disposition_type="inline",
            headers={"cache-control": "private, max-age=3600"},
        )

    @app.get("/v1/videos/{video_id}/events", response_class=Response, responses=EVENTS)
    async def events(video_id: str, request: Request) -> Response:
        """Every finished step and phase, as server-sent events."""
        job = await run_in_threadpool(found, video_id)
        return StreamingResponse(
            events_of(service, job, request.headers.get("last-event-id", "")),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )


def _add_state(app: FastAPI, service: VideoService) -> None:
    @app.get("/v1/models", response_model=None)
    def models() -> Response:
        """The model that is served."""
        return JSONResponse({"object": "list", "data": [_model(service)]})

    @app.get("/v1/models/{model}", response_model=None)
    def model(model: str) -> Response:
        """The same, by its name."""
        if model != service.model:
            raise Problem(404, f"there is no model {model[:80]!r}", code="model_not_found")
        return JSONResponse(_model(service))

    @app.head("/health", response_model=None, include_in_schema=False)
    @app.get("/health", response_model=None)
    async def health() -> Response:
        """That the server is alive."""
        return JSONResponse({"status": "ok"})

    @app.head("/ready", response_model=None, include_in_schema=False)
    @app.get("/ready", response_model=None)
    async def ready() -> Response:
        """Whether the model is loaded, and the queue can be used."""
        if service.unready:
            return Problem(503, service.unready, headers={"retry-after": "5"}).answer()
        return JSONResponse({"status": "ready", "model": service.model})

    @app.get("/metrics", response_class=Response, responses=METRICS)
    def metrics() -> Response:
        """Metrics, for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _model(service: VideoService) -> dict[str, Any]:
    return {"id": service.model, "object": "model", "created": 0, "owned_by": "longtake"}


def _created(
    service: VideoService,
    values: dict[str, Any],
    upload: bytes | None,
    asker: str,
    once: str | None,
) -> Response:
    try:
        job = service.create(values, upload, asker=asker, once=once)
        return JSONResponse(video_object(service, job))
    except QueueFullError as error:
        wait_s = math.ceil(service.pace.seconds_until_room())
        raise Problem(
            429, str(error), code="queue_full", headers={"retry-after": str(wait_s)}
        ) from error
    except BeingDeletedError as error:
        raise Problem(409, str(error), param="Idempotency-Key", code="conflict") from error
    except RefusedInputError as error:
        raise Problem.of(refused(error, values)) from error


@asynccontextmanager
async def _sent(request: Request) -> AsyncIterator[tuple[dict[str, Any], bytes | None]]:
    """What a request holds, of a JSON object or of a form, and its file."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        limits = {"max_fields": _MOST_FIELDS, "max_part_size": _MOST_TEXT}
        try:
            if kind == "multipart/form-data":
                parts = _InMemory(request.headers, request.stream(), max_files=1, **limits)
                form = await parts.parse()
            else:
                form = await FormParser(request.headers, request.stream(), **limits).parse()
        except (MultiPartException, KeyError) as error:  # KeyError: no boundary is named
            message = getattr(error, "message", "it has no boundary")
            raise Problem(400, f"the form cannot be read: {message}") from error
        try:
            yield await _of_form(form)
        finally:
            await form.close()
        return
    if kind not in ("application/json", ""):
        raise Problem(415, f"{kind[:60]!r} is no JSON and no form: send one of them")
    try:
        content = json.loads(await request.body(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the body is no JSON") from error
    if not isinstance(content, dict):
        raise Problem(400, "the body must be a JSON object")
    yield content, None


async def _of_form(form: FormData) -> tuple[dict[str, Any], bytes | None]:
    values: dict[str, Any] = {}
    upload = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "input_reference":
                raise Problem(400, "a file can be input_reference alone", param=name[:60])
            upload = await value.read()
        elif name.endswith("[]") and isinstance(values.get(name[:-2], []), list):
            values.setdefault(name[:-2], []).append(value)
        elif name in values:
            raise Problem(400, f"{name[:60]!r} is there twice", param=name[:60])
        else:
            values[name] = value
    return values, upload


class _InMemory(MultiPartParser):
    """A form whose file stays in memory: nothing is written outside the server's folder."""

    spool_max_size = 2**30


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _drop_odd_range(request: Request) -> None:
    """A range that is none is as if it were not there (RFC 9110, 14.2)."""
    given = request.headers.get("range", "bytes=0-")
    pairs = re.findall(r"(\d+)-(\d+)", given)
    if not _RANGE.fullmatch(given) or any(int(first) > int(last) for first, last in pairs):
        headers = request.scope["headers"]
        request.scope["headers"] = [(name, value) for name, value in headers if name != b"range"]


def _pictures(service: VideoService, job: JobRecord, variant: str) -> Response:
    """Some frames side by side, or one; of a job that runs, those decoded so far."""
    course = service.live.course(job.id)
    picture = course.picture if course is not None else b""
    if job.state == "done":
        try:
            picture = service.strip(job).read_bytes()
        except OSError:
            picture = b""
    if not picture:
        raise Problem(404, f"no frame of {job.id} is decoded yet", code="not_ready")
    if variant == "thumbnail":
        picture = middle_of(picture, job.request.width / job.request.height)
    return Response(picture, media_type="image/jpeg", headers={"cache-control": "no-cache"})
