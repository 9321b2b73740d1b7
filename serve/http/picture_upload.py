"""Upload of pictures, and a limit on concurrent decoding."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from longtake.errors import RefusedInputError
from longtake.serve.http.problems import Problem
from longtake.serve.service.pictures import Pictures

_MAX_AT_ONCE = 16
_TIMEOUT_S = 30.0

ResultT = TypeVar("ResultT")


class PictureLimit:
    """Limits the threads that decode pictures, so that other requests find free threads.

    Clients can send pictures that are slow to decode.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_MAX_AT_ONCE)

    async def run(self, request: Request, work: Callable[[], ResultT]) -> ResultT:
        """Run a function in a thread as soon as one is free, and return its result.

        Raises:
            Problem: No thread became free in time.
            ClientDisconnect: The client disconnected while waiting; the function was not called.
        """
        try:
            await asyncio.wait_for(self._free.acquire(), _TIMEOUT_S)
        except asyncio.TimeoutError as error:
            raise Problem(
                503, "too many pictures are being decoded: try again", headers={"retry-after": "10"}
            ) from error
        try:
            if await request.is_disconnected():
                raise ClientDisconnect
            return await run_in_threadpool(work)
        finally:
            self._free.release()


def add_picture_upload(app: FastAPI, pictures: Pictures, limit: PictureLimit) -> None:
    """Add the route to which the page uploads a picture before it submits a video.

    Gradio's own upload is not used.
    """

    @app.post("/picture", include_in_schema=False, response_model=None)
    async def upload(request: Request) -> Response:
        try:
            name = await limit.run(request, partial(pictures.upload, await request.body()))
        except RefusedInputError as error:
            raise Problem(400, str(error), param="input_reference") from error
        return JSONResponse({"picture": name})
