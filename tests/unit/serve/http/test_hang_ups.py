"""Disconnecting clients are counted, and are no errors of the server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from tests.standin import gray_server

FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\nabc'
TEXTS = "application/x-www-form-urlencoded"


def hung_up(application: Any, path: str, kind: str, *parts: bytes) -> list[Message]:
    """The messages sent to a client that disconnects after some parts of a body."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"content-type", kind.encode()),
            (b"content-length", b"5000"),
        ],
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 8000),
    }
    left: list[Message] = [
        {"type": "http.request", "body": part, "more_body": True} for part in parts
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    return sent


def test_disconnects_within_the_body_are_counted_as_499(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests: list[tuple[str, str, tuple[bytes, ...]]] = [
        ("/v1/videos", "application/json", ()),
        ("/v1/videos", "application/json", (b'{"prompt": ', b'"a"')),
        ("/v1/videos", FORM, (PART[:30],)),
        ("/v1/videos", FORM, (PART,)),
        ("/v1/videos", TEXTS, (b"prompt=a",)),
        ("/login", TEXTS, (b"key=",)),
    ]
    with gray_server(monkeypatch, tmp_path) as (client, _):
        for path, kind, parts in requests:
            assert hung_up(client.app, path, kind, *parts) == [], (path, kind)
        counted = client.get("/metrics").text
        assert client.get("/v1/videos").json()["data"] == []
    lines = [line for line in counted.splitlines() if line.startswith("longtake_http_requests_t")]
    assert all('status="499"' in line for line in lines), lines
    assert sum(float(line.split()[-1]) for line in lines) == len(requests)
