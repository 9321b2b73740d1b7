"""The filter in front of the API and the page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from longtake.serve.http import middleware
from longtake.serve.http.access import Access
from longtake.serve.http.middleware import BodyLimits, PageApp, RequestFilter

Response = tuple[str, str, int]


def filtered(
    app: ASGIApp, responses: list[Response], stopping: Callable[[], bool] = lambda: False
) -> TestClient:
    def count(method: str, route: str, status: int) -> None:
        responses.append((method, route, status))

    access = Access((), "127.0.0.1")
    application = RequestFilter(app, None, access, BodyLimits(1000, 5), count, stopping)
    return TestClient(application, base_url="http://127.0.0.1:8000")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    response = PlainTextResponse(body, headers={"access-control-allow-origin": "*"})
    await response(scope, receive, send)


def test_every_response_has_the_security_headers() -> None:
    client = filtered(echo, [])
    for path in ("/health", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "access-control-allow-origin" not in headers


def test_bodies_return_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_MAX_BYTES_IN_FLIGHT", 1000)
    client = filtered(echo, [])
    for _ in range(5):
        assert client.post("/v1/videos", content=b"a" * 600).text == "a" * 600


def test_unknown_methods_and_paths_share_the_labels_of_metrics() -> None:
    responses: list[Response] = []
    client = filtered(echo, responses)
    client.request("BREW", "/health")
    client.get("/one")
    client.get("/two")
    assert responses == [("other", "other", 200), *[("GET", "other", 404)] * 2]


def test_responses_may_be_cancelled_only_while_the_server_stops() -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    async def run(stopping: bool) -> None:
        responses: list[Response] = []
        application = filtered(cancelled, responses, lambda: stopping).app
        headers = [(b"host", b"127.0.0.1:8000")]
        scope = {"type": "http", "method": "GET", "path": "/health", "headers": headers}

        async def never(*message: object) -> None:
            raise AssertionError

        await application(scope, never, never)  # type: ignore[arg-type]

    asyncio.run(run(stopping=True))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run(stopping=False))


def test_a_head_request_reaches_the_page_where_get_does() -> None:
    page = PageApp(echo, {"GET": re.compile("/"), "POST": re.compile("/call")})
    assert page.serves("GET", "/")
    assert page.serves("HEAD", "/")
    assert page.serves("POST", "/call")
    assert not page.serves("HEAD", "/call")
    assert not page.serves("PUT", "/")
