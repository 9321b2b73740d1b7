"""What Gradio is handed of what the page's script sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from longtake.serve.page.page_calls import PageCalls

CALL = "/gradio_api/run/predict"


async def said(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse({"body": body.decode(), "query": request.url.query})


@pytest.fixture
def client() -> TestClient:
    routes = [Route(path, said, methods=["GET", "POST"]) for path in (CALL, "/picture")]
    return TestClient(PageCalls(Starlette(routes=routes), {0: 2, 3: 0}))


def test_a_function_and_its_values_are_all_that_is_handed_on(client: TestClient) -> None:
    call = {"fn_index": 0, "data": ["é", None]}
    more = {"session_hash": "x" * 100, "trigger_id": 5, "event_id": "x", "batched": True}
    handed_on = client.post(f"{CALL}?a=b", json={**call, **more}).json()
    assert json.loads(handed_on["body"]) == call
    assert handed_on["query"] == ""
    assert client.get(f"{CALL}?page=x").json()["query"] == ""
    assert client.post("/picture", content=b"{").json()["body"] == "{"


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"fn_index": 0, "data": []},
        {"fn_index": 3, "data": [1]},
        {"fn_index": 1, "data": []},
        {"fn_index": "3", "data": []},
        {"fn_index": None, "data": []},
        {"fn_index": 3.5, "data": []},
        {"fn_index": 0, "data": ["\ud800", 1]},
    ],
)
def test_what_no_page_sends_is_refused(client: TestClient, call: dict[str, Any]) -> None:
    answer = client.post(CALL, content=json.dumps(call))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "no page sends this"
