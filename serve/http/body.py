"""Bodies of requests, of so many bytes and within so many seconds."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from longtake.serve.http.problems import Problem

_SCALARS = (str, int, float, bool, type(None))


class Budget:
    """Bytes that all requests together may have in memory.

    Args:
        most: of them.
    """

    def __init__(self, most: int) -> None:
        self.left = most


class Body:
    """A request's body, as an application receives it.

    Args:
        receive: what comes from the client.
        most_bytes: that it may have.
        timeout_s: within which it is whole.
        budget: that all share.

    Attributes:
        gone: whether the client was seen to have hung up.
    """

    def __init__(self, receive: Receive, most_bytes: int, timeout_s: float, budget: Budget) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._budget = budget
        self._taken = 0
        self._whole = False
        self._again: Message | None = None
        self.gone = False

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            Problem: it is too large, or too slow.
        """
        if self._again is not None:
            message, self._again = self._again, None
            return message
        if self._whole:  # then what comes is that the client has gone
            message = await self._receive()
        else:
            message = await self._next_part()
        self.gone = self.gone or message["type"] == "http.disconnect"
        return message

    async def _next_part(self) -> Message:
        try:
            wait_s = self._deadline - time.monotonic()
            message = await asyncio.wait_for(self._receive(), max(0.0, wait_s))
        except asyncio.TimeoutError as error:
            raise Problem(
                408,
                f"the request did not come within {self._timeout_s:g} s: send it again",
                headers={"connection": "close"},
            ) from error
        if message["type"] == "http.request":
            self._whole = not message.get("more_body", False)
            self._take(len(message.get("body", b"")))
        return message

    def _take(self, count: int) -> None:
        self._taken += count
        self._budget.left -= count
        if self._taken > self._most_bytes:
            raise too_large(self._most_bytes)
        if self._budget.left < 0:
            raise Problem(
                503, "too much is being sent at a time: try again", headers={"retry-after": "5"}
            )

    def close(self) -> None:
        """Its bytes are no longer in memory."""
        self._budget.left += self._taken
        self._taken = 0

    async def read(self, most_bytes: int) -> bytes:
        """All of it; what is received then is what :meth:`send_on` says.

        Raises:
            Problem: it is too large, or too slow.
            ClientDisconnect: the client hung up before it was whole.
        """
        parts: list[bytes] = []
        while not self._whole:
            message = await self()
            if message["type"] != "http.request":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            if self._taken > most_bytes:
                raise too_large(most_bytes)
        return b"".join(parts)

    def send_on(self, content: bytes) -> None:
        """Have this received in the place of what was read."""
        self._again = {"type": "http.request", "body": content, "more_body": False}


async def check_call(body: Body, most_bytes: int) -> None:
    """Let only those of Gradio's calls pass that hold nothing but words and numbers: it takes an
    object for a file's name or URL, and opens it before any code of ours is asked.

    Raises:
        Problem: it is anything else.
    """
    try:
        call: Any = json.loads(await body.read(most_bytes) or b"{}")
        values = call.get("data", [])
        plain = all(isinstance(each, _SCALARS) for each in values)
        extra = {name: call[name] for name in call if name != "data"}
        plain = plain and all(isinstance(each, _SCALARS) for each in extra.values())
    except (ValueError, RecursionError, AttributeError, TypeError):
        plain = False
    if not plain or not isinstance(values, list):
        raise Problem(400, "no page sends this")
    body.send_on(json.dumps(call).encode())  # as it was understood here, whatever else it may mean


def too_large(most_bytes: int) -> Problem:
    """The answer to a body of too many bytes."""
    return Problem(
        413,
        f"the request has more than {most_bytes / 2**20:g} MiB, which are the most: make the "
        "picture smaller",
        headers={"connection": "close"},
    )
