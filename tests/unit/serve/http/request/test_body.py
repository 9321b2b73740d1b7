"""Limits on the size and duration of request bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.types import Message

from longtake.serve.http.problems import Problem
from longtake.serve.http.request.body import ByteBudget, LimitedBody


def body_of(
    parts: Sequence[bytes], budget: ByteBudget, most: int = 1000, wait_s: float = 0
) -> LimitedBody:
    left = list(parts)

    async def receive() -> Message:
        await asyncio.sleep(wait_s)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return LimitedBody(receive, most, 0.2, budget)


def received(body: LimitedBody) -> bytes:
    async def all_of_it() -> bytes:
        whole = b""
        while True:
            message = await body()
            whole += bytes(message["body"])
            if not message["more_body"]:
                return whole

    return asyncio.run(all_of_it())


def test_bytes_are_counted_and_returned() -> None:
    budget = ByteBudget(10)
    first, second = body_of([b"12345", b"678"], budget), body_of([b"abc"], budget)
    assert received(first) == b"12345678"
    with pytest.raises(Problem) as refused:
        received(second)
    assert refused.value.status_code == 503
    first.release()
    second.release()
    assert budget.left == 10
    assert received(body_of([b"abc"], budget)) == b"abc"


def test_large_and_slow_bodies_are_refused() -> None:
    """The connection is closed: what is left of the body is not worth receiving."""
    with pytest.raises(Problem) as refused:
        received(body_of([b"a" * 600, b"a" * 600], ByteBudget(10_000)))
    assert refused.value.status_code == 413
    assert refused.value.headers == {"connection": "close"}
    with pytest.raises(Problem) as refused:
        received(body_of([b"a", b"b"], ByteBudget(100), wait_s=0.15))
    assert refused.value.status_code == 408
    assert refused.value.headers == {"connection": "close"}


def test_the_time_limit_ends_with_the_body() -> None:
    """Event streams wait for the client's disconnect without a limit."""

    async def wait_for_disconnect() -> Message:
        messages: list[Message] = [
            {"type": "http.request", "body": b"a"},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Message:
            if len(messages) == 1:
                await asyncio.sleep(0.2)
            return messages.pop(0)

        body = LimitedBody(receive, 10, 0.1, ByteBudget(10))
        await body()
        assert not body.disconnected
        message = await body()
        assert body.disconnected
        return message

    assert asyncio.run(wait_for_disconnect())["type"] == "http.disconnect"
