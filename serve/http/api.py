"""The HTTP API: OpenAI's videos API, and the state of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from longtake.engine.loras.folder import OfferedLora
from longtake.serve.http.openapi import ERRORS, LORAS, METRICS
from longtake.serve.http.problems import Problem, add_error_handlers
from longtake.serve.service.metrics import CONTENT_TYPE
from longtake.serve.service.service import VideoService
from longtake.version import __version__


def build_api(service: VideoService, videos: APIRouter, page: FastAPI | None = None) -> FastAPI:
    """The API as an application. Its lifespan starts and closes the service and the page.

    Args:
        service: The service.
        videos: Routes of the videos API.
        page: The page; None if only the API is served.
    """
    app = FastAPI(
        redirect_slashes=False,
        title="longtake",
        version=__version__,
        summary="Videos from diffusion transformers, through OpenAI's videos API",
        lifespan=lambda app: _lifespan(service, page),
        docs_url=None,  # FastAPI's page loads scripts from other hosts
        redoc_url=None,
        responses=ERRORS,
    )
    add_error_handlers(app)
    app.include_router(videos)
    app.include_router(_state_router(service))
    return app


def _lifespan(service: VideoService, page: FastAPI | None) -> AbstractAsyncContextManager[None]:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        try:
            if page is None:
                yield
            else:
                async with page.router.lifespan_context(page):
                    yield
        finally:
            await run_in_threadpool(service.close)

    return lifespan()


def _state_router(service: VideoService) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", response_model=None)
    def models() -> Response:
        """List the served model."""
        return JSONResponse({"object": "list", "data": [_model_object(service)]})

    @router.get("/v1/models/{model}", response_model=None)
    def model(model: str) -> Response:
        """Describe the served model."""
        if model != service.model.name:
            raise Problem(404, f"there is no model {model[:80]!r}", code="model_not_found")
        return JSONResponse(_model_object(service))

    @router.get("/v1/loras", response_model=None, responses=LORAS)
    def loras() -> Response:
        """List the LoRAs that a request may name."""
        offered = [] if service.loras is None else service.loras.offered()
        return JSONResponse({"object": "list", "data": [_lora_object(each) for each in offered]})

    @router.head("/health", response_model=None, include_in_schema=False)
    @router.get("/health", response_model=None)
    async def health() -> Response:
        """Whether the server is alive."""
        return JSONResponse({"status": "ok"})

    @router.head("/ready", response_model=None, include_in_schema=False)
    @router.get("/ready", response_model=None)
    async def ready() -> Response:
        """Whether the model is loaded and the queue is usable."""
        if service.unready:
            return Problem(503, service.unready, headers={"retry-after": "5"}).response()
        return JSONResponse({"status": "ready", "model": service.model.name})

    @router.get("/metrics", response_class=Response, responses=METRICS)
    def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router


def _model_object(service: VideoService) -> dict[str, Any]:
    return {"id": service.model.name, "object": "model", "created": 0, "owned_by": "longtake"}


def _lora_object(lora: OfferedLora) -> dict[str, Any]:
    return {
        "id": lora.name,
        "object": "lora",
        "bytes": lora.num_bytes,
        "uses": list(lora.uses),
        "problem": lora.problem or None,
    }
