"""The calls that the page's own script makes, and how Gradio is handed them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longtake.serve.http.problems import Problem

_CALLS = "/gradio_api/"


class PageCalls:
    """ASGI middleware before Gradio that hands on a function's number and its values, and nothing
    else.

    Gradio keeps a copy of the page for each session that a call names, what its queue has to tell a
    session until it is fetched, and a document for each page that an address names. The page needs
    none of them: its calls are answered at once, and it keeps what it has to remember itself. So no
    call names a session, no address has a query, and nothing is left of a call once it is answered.

    Args:
        page: Gradio's application.
        inputs: how many values each function takes, by its number.
    """

    def __init__(self, page: ASGIApp, inputs: Mapping[int, int]) -> None:
        self._page = page
        self._inputs = inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or answer that no page sends it."""
        if scope["type"] == "http":
            scope["query_string"] = b""
            if scope["method"] == "POST" and scope["path"].startswith(_CALLS):
                try:
                    content = self._checked(await Request(scope, receive).body())
                except Problem as problem:
                    await problem.answer()(scope, receive, send)
                    return
                receive = _replayed(content, receive)
        await self._page(scope, receive, send)

    def _checked(self, content: bytes) -> bytes:
        """A call as Gradio is to have it.

        Raises:
            Problem: the page sends no such call.
        """
        call: Any = json.loads(content)  # an object of words and numbers, as the guard saw to
        number, values = call.get("fn_index"), call.get("data", [])
        try:
            if type(number) is int and self._inputs.get(number) == len(values):
                handed_on = {"fn_index": number, "data": values}
                return json.dumps(handed_on, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a character
            pass
        raise Problem(400, "no page sends this")


def _replayed(content: bytes, receive: Receive) -> Receive:
    """A body in one piece, and then what comes from the client."""
    messages = iter([content])

    async def replayed() -> Message:
        for body in messages:
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed
