"""Middleware between the page's script and Gradio."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longtake.errors import one_line
from longtake.serve.http.problems import Problem
from longtake.serve.http.request.body import too_large
from longtake.serve.page.gradio_internals import CALL_PATH, encode_call

logger = logging.getLogger(__name__)

_MAX_BYTES = 256 * 1024
_SCALARS = (str, int, float, bool, type(None))
_INVALID = "not a call of the page"


class PageCalls:
    """ASGI middleware that forwards only the number of a function and its arguments to Gradio.

    Arguments are scalars, because Gradio opens objects as files or URLs. Gradio also keeps, in
    memory, a copy of the page and the results for each session, and a document for each query
    string. The page needs none of them: sessions and query strings are removed.

    Args:
        app: Gradio's application.
        num_arguments: Number of arguments of each function, by function number.
    """

    def __init__(self, app: ASGIApp, num_arguments: Mapping[int, int]) -> None:
        self._app = app
        self._num_arguments = num_arguments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request."""
        scope["query_string"] = b""
        if scope["method"] == "POST" and scope["path"] == CALL_PATH:
            await self._call(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_without_faults(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if message["status"] == 500:  # a handler cannot take an argument
                    message["status"] = 400
            await send(message)

        try:
            content = self._checked(await _read(Request(scope, receive)))
            await self._app(scope, _replay(content, receive), send_without_faults)
        except Problem as problem:
            await problem.response()(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception as error:  # of Gradio
            logger.warning("a call of the page failed: %s", one_line(error)[:200])
            if not started:
                await Problem(400, _INVALID).response()(scope, receive, send)

    def _checked(self, content: bytes) -> bytes:
        """A valid call, encoded again, so that Gradio's parser sees what was checked.

        Raises:
            Problem: The page sends no such call.
        """
        try:
            call: Any = json.loads(content)
            function, arguments = call.get("fn_index"), call.get("data", [])
            others = (value for name, value in call.items() if name != "data")
            valid = (
                isinstance(arguments, list)
                and all(isinstance(each, _SCALARS) for each in (*arguments, *others))
                and self._num_arguments.get(function) == len(arguments)
            )
            if valid:
                return json.dumps(encode_call(function, arguments), ensure_ascii=False).encode()
        except (ValueError, RecursionError, AttributeError):
            pass  # not JSON, not an object, nested too deeply, or with lone surrogates
        raise Problem(400, _INVALID)


async def _read(request: Request) -> bytes:
    """The body of a call.

    Raises:
        Problem: It is too large, or not declared as JSON, as a form of another site would be.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise Problem(404, "not found: GET /openapi.json lists the API")
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _MAX_BYTES:
            raise too_large(_MAX_BYTES)
    return content


def _replay(content: bytes, receive: Receive) -> Receive:
    """A ``receive`` that returns this body, then the messages that follow it."""
    messages = iter([content])

    async def replay() -> Message:
        for body in messages:
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
