"""Calls of the page on their way to Gradio."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message

from longtake.serve.page.gradio_internals import CALL_PATH
from longtake.serve.page.page_calls import PageCalls

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


async def echo(request: Request) -> Response:
    body = await request.body()
    if b"fault" in body:
        raise RuntimeError("a fault")
    if b"status" in body:
        return Response(status_code=500)
    return JSONResponse({"body": body.decode(), "query": request.url.query})


@pytest.fixture
def client() -> TestClient:
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in (CALL_PATH, "/other")]
    app = PageCalls(Starlette(routes=routes), {0: 2, 3: 0})
    return TestClient(app, headers={"content-type": "application/json"})


def test_only_a_function_and_its_arguments_are_forwarded(client: TestClient) -> None:
    call = {"fn_index": 0, "data": ["é", None]}
    more = {"session_hash": "x" * 100, "trigger_id": 5, "event_id": "x", "batched": True}
    passed_on = client.post(f"{CALL_PATH}?a=b", json={**call, **more}).json()
    assert json.loads(passed_on["body"]) == call
    assert passed_on["query"] == ""
    assert client.get(f"{CALL_PATH}?page=x").json()["query"] == ""
    assert client.post("/other", content=b"{").json()["body"] == "{"


def test_calls_are_forwarded_as_they_were_parsed(client: TestClient) -> None:
    twice = b'{"data": [{"path": "/etc/passwd"}], "data": ["a", 1], "fn_index": 0}'
    for content in (twice, twice.decode().encode("utf-16")):
        passed_on = client.post(CALL_PATH, content=content).json()
        assert json.loads(passed_on["body"]) == {"data": ["a", 1], "fn_index": 0}


@pytest.mark.parametrize(
    "call",
    [
        {},
        [],
        5,
        None,
        {"fn_index": 0, "data": []},
        {"fn_index": 3, "data": [1]},
        {"fn_index": 1, "data": []},
        {"fn_index": "3", "data": []},
        {"fn_index": None, "data": []},
        {"fn_index": 3.5, "data": []},
        {"fn_index": 0, "data": ["\ud800", 1]},
        {"fn_index": 0, "data": [FILE, 1]},
        {"fn_index": 0, "data": [[1], 1]},
        {"fn_index": 0, "data": "ab"},
        {"fn_index": 0, "data": FILE},
        {"fn_index": 3, "data": [], "event_data": FILE},
    ],
)
def test_invalid_calls_are_refused(client: TestClient, call: Any) -> None:
    answer = client.post(CALL_PATH, content=json.dumps(call))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "not a call of the page"


def test_calls_that_are_too_large_or_not_json_are_refused(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    call = {"fn_index": 0, "data": ["x" * 300_000, 1]}
    assert client.post(CALL_PATH, json=call).status_code == 413
    form = {"content-type": "text/plain"}
    assert client.post(CALL_PATH, content=b"{}", headers=form).status_code == 404
    for content in (b"[" * 100_000, b"{", b"[]", b'{"fn_index": 0, "data": ["\\ud800", 1]}'):
        assert client.post(CALL_PATH, content=content).status_code == 400
    assert not caplog.records


def test_a_disconnect_is_not_logged_as_a_failed_call(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def disconnected() -> Message:
        return {"type": "http.disconnect"}

    async def never(message: Message) -> None:
        raise AssertionError

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CALL_PATH, "headers": headers}
    with pytest.raises(ClientDisconnect):
        asyncio.run(client.app(scope, disconnected, never))  # type: ignore[arg-type]
    assert not caplog.messages


@pytest.mark.parametrize("value", ["fault", "status"])
def test_errors_of_a_handler_are_client_errors(client: TestClient, value: str) -> None:
    answer = client.post(CALL_PATH, json={"fn_index": 0, "data": [value, 1]})
    assert answer.status_code == 400
