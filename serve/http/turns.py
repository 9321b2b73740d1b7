"""Work that takes long by a client's doing, in few threads, so that others have theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from longtake.serve.http.problems import Problem

_AT_ONCE = 16
_LONGEST_WAIT_S = 30.0

ResultT = TypeVar("ResultT")


class Turns:
    """Some threads for one kind of work."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def take(self, request: Request, work: Callable[[], ResultT]) -> ResultT:
        """Do some work for a request once a thread is free.

        Raises:
            Problem: none was for too long.
            ClientDisconnect: the client has gone; nothing was done.
        """
        try:
            await asyncio.wait_for(self._free.acquire(), _LONGEST_WAIT_S)
        except asyncio.TimeoutError as error:
            raise Problem(
                503, "too many pictures are being read: try again", headers={"retry-after": "10"}
            ) from error
        try:
            if await request.is_disconnected():
                raise ClientDisconnect
            return await run_in_threadpool(work)
        finally:
            self._free.release()
