"""Bodies of requests: how many bytes, how slowly, and what may stand in a call of the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from starlette.types import Message

from longtake.serve.http.body import Body, Budget, check_call
from longtake.serve.http.problems import Problem


def body_of(parts: Sequence[bytes], budget: Budget, most: int = 1000, wait_s: float = 0) -> Body:
    left = list(parts)

    async def receive() -> Message:
        await asyncio.sleep(wait_s)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return Body(receive, most, 0.2, budget)


def received(body: Body) -> bytes:
    async def all_of_it() -> bytes:
        whole = b""
        while True:
            message = await body()
            whole += bytes(message["body"])
            if not message["more_body"]:
                return whole

    return asyncio.run(all_of_it())


def test_bytes_are_counted_and_given_back() -> None:
    budget = Budget(10)
    first, second = body_of([b"12345", b"678"], budget), body_of([b"abc"], budget)
    assert received(first) == b"12345678"
    with pytest.raises(Problem) as refused:
        received(second)
    assert refused.value.status_code == 503
    first.close()
    second.close()
    assert budget.left == 10
    assert received(body_of([b"abc"], budget)) == b"abc"


def test_too_many_or_too_slow() -> None:
    with pytest.raises(Problem) as refused:
        received(body_of([b"a" * 600, b"a" * 600], Budget(10_000)))
    assert refused.value.status_code == 413
    with pytest.raises(Problem) as refused:
        received(body_of([b"a", b"b"], Budget(100), wait_s=0.15))
    assert refused.value.status_code == 408


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "call",
    [
        {"data": [FILE]},
        {"data": [[1]]},
        {"data": FILE},
        {"data": "words"},
        {"data": [1], "event_data": FILE},
        [],
        5,
        None,
    ],
)
def test_calls_that_hold_more_than_words_and_numbers(call: object) -> None:
    with pytest.raises(Problem) as refused:
        asyncio.run(check_call(body_of([json.dumps(call).encode()], Budget(9999)), 1000))
    assert refused.value.status_code == 400


def test_what_is_understood_is_what_is_handed_on() -> None:
    twice = b'{"data": [{"path": "/etc/passwd"}], "data": ["a", 1, null, true], "fn_index": 3}'
    for content in (twice, twice.decode().encode("utf-16")):
        body = body_of([content[:20], content[20:]], Budget(9999))

        async def handed_on(body: Body = body) -> bytes:
            await check_call(body, 1000)
            return bytes((await body())["body"])

        call = json.loads(asyncio.run(handed_on()))
        assert call == {"data": ["a", 1, None, True], "fn_index": 3}
