"""Limits on the size and duration of request bodies."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive

from longtake.serve.http.problems import Problem


class ByteBudget:
    """Memory for the bodies of all concurrent requests.

    Args:
        limit: Size in bytes.

    Attributes:
        left: Bytes not in use.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit


class LimitedBody:
    """An ASGI ``receive`` that limits the body.

    Args:
        receive: The server's ``receive``.
        max_bytes: Maximum size of the body.
        timeout_s: Maximum time for the whole body to arrive.
        budget: Memory shared by all requests.

    Attributes:
        disconnected: Whether the client has disconnected.
    """

    def __init__(
        self, receive: Receive, max_bytes: int, timeout_s: float, budget: ByteBudget
    ) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._budget = budget
        self._received = 0
        self._complete = False
        self.disconnected = False

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            Problem: The body is too large or too slow, or all bodies together are too large.
        """
        if self._complete:  # the only message left is the disconnect
            message = await self._receive()
        else:
            message = await self._next_part()
        self.disconnected = self.disconnected or message["type"] == "http.disconnect"
        return message

    async def _next_part(self) -> Message:
        try:
            wait_s = self._deadline - time.monotonic()
            message = await asyncio.wait_for(self._receive(), max(0.0, wait_s))
        except asyncio.TimeoutError as error:
            raise Problem(
                408,
                f"the request did not arrive within {self._timeout_s:g} s: send it again",
                headers={"connection": "close"},
            ) from error
        if message["type"] == "http.request":
            self._complete = not message.get("more_body", False)
            self._count(len(message.get("body", b"")))
        return message

    def _count(self, num_bytes: int) -> None:
        self._received += num_bytes
        self._budget.left -= num_bytes
        if self._received > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._budget.left < 0:
            raise Problem(
                503,
                "too many bytes are being received at once: try again",
                headers={"retry-after": "5"},
            )

    def release(self) -> None:
        """Return the body's bytes to the budget. Must be called once, when the request ends."""
        self._budget.left += self._received


def too_large(max_bytes: int) -> Problem:
    """The response to a body that is too large."""
    return Problem(
        413,
        f"the request has more than {max_bytes / 2**20:g} MiB, the limit: make the picture smaller",
        headers={"connection": "close"},
    )
