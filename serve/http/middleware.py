"""What stands before the whole application: who may come in, how much, and how slowly."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longtake.errors import one_line
from longtake.serve.http.access import Access
from longtake.serve.http.body import Body, Budget, check_call, too_large
from longtake.serve.http.problems import Problem

logger = logging.getLogger(__name__)

OPEN = ("/health", "/ready", "/login")
"""What answers without a key, and says nothing of any video."""

_OF_API = re.compile(r"/(v1/.*|health|ready|metrics|login|logout|openapi\.json)", re.DOTALL)
_OF_PAGE = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
        r"|/(static|assets|svelte)/[\w./@+-]+|/gradio_api/app_id"
    ),
    "POST": re.compile(r"/picture|/gradio_api/(run/predict|queue/join)"),
}
"""All that the page needs, of Gradio, too. There is no way to Gradio's files, uploads and proxy.
Nothing waits in its queue: it refuses calls that name no session, and none does."""

_CALLS = "/gradio_api/"
"""What is amiss there is the client's fault."""
_MOST_OF_CALL = 256 * 1024

_MOST_HEADER_BYTES = 32 * 1024
_MOST_IN_FLIGHT = 2**28
"""Bytes of all requests together that are being sent at a time."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'",
}


class Guard:
    """The ASGI application that is before the others.

    Args:
        api: what answers.
        page: what answers the page's own requests; None: nothing.
        access: who may come in.
        most_bytes: of a request's body.
        timeout_s: for a whole request.
        answered: told of each answer: method, route, status.
        stopping: whether the server ends, and so may cut answers short.
    """

    def __init__(
        self,
        api: ASGIApp,
        page: ASGIApp | None,
        access: Access,
        *,
        most_bytes: int,
        timeout_s: float,
        answered: Callable[[str, str, int], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._api = api
        self._page = page
        self._access = access
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s
        self._answered = answered
        self._stopping = stopping
        self._in_flight = Budget(_MOST_IN_FLIGHT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._api(scope, receive, send)
            return
        if scope["type"] != "http":  # no page of ours opens a socket
            await send({"type": "websocket.close", "code": 1008})
            return
        body = Body(receive, self._most_bytes, self._timeout_s, self._in_flight)
        answer = _Answer(send, body, of_call=scope["path"].startswith(_CALLS))
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, answer)
            else:
                await self._hand_on(scope, body, answer)
        except ClientDisconnect:
            logger.debug("a client hung up: %s %s", _method(scope), _route(scope))
        except asyncio.CancelledError:
            if not self._stopping():
                raise
        finally:
            body.close()
            self._answered(_method(scope), _route(scope), answer.status)

    async def _hand_on(self, scope: Scope, body: Body, answer: _Answer) -> None:
        if _OF_API.fullmatch(scope["path"]) or self._page is None:
            await self._api(scope, body, answer)
            return
        try:
            if answer.of_call and scope["method"] == "POST":
                await check_call(body, _MOST_OF_CALL)
            await self._page(scope, body, answer)
        except Problem as problem:
            await problem.answer()(scope, body, answer)
        except ClientDisconnect:
            raise
        except Exception as error:
            if not answer.of_call:
                raise
            logger.warning("the page was sent what no page sends: %s", one_line(error)[:200])
            if not answer.begun:
                await Problem(400, "no page sends this").answer()(scope, body, answer)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that may not go on; also says who asks."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if sum(len(name) + len(value) for name, value in headers.raw) > _MOST_HEADER_BYTES:
            return Problem(431, f"more than {_MOST_HEADER_BYTES} bytes of headers").answer()
        if not self._access.trusts(method, headers):
            return Problem(403, "sent by another site, or to another name of this host").answer()
        asker = self._access.asker(headers)
        scope["asker"] = asker
        if asker is None and path not in OPEN:
            if path == "/" and method in ("GET", "HEAD"):
                return RedirectResponse("/login", 303)
            return Problem(
                401,
                "no API key that is known here: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            ).answer()
        allowed = _OF_PAGE.get("GET" if method == "HEAD" else method)
        of_page = self._page is not None and allowed is not None and allowed.fullmatch(path)
        is_json = headers.get("content-type", "").startswith("application/json")
        if method == "POST" and path.startswith(_CALLS) and not is_json:
            of_page = False  # what a form of another site would send
        if not (_OF_API.fullmatch(path) or of_page) or ".." in path.split("/"):
            return Problem(404, "there is nothing here").answer()
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > self._most_bytes:
            return too_large(self._most_bytes).answer()
        return None


class _Answer:
    """What is sent to a client, with headers that keep a browser from doing more than it should."""

    def __init__(self, send: Send, body: Body, *, of_call: bool) -> None:
        self._send = send
        self._body = body
        self.of_call = of_call
        self.begun = False
        self.status = 499
        """Until there is an answer: the client has gone before."""

    async def __call__(self, message: Message) -> None:
        if self._body.gone and not self.begun:  # nobody is there to be answered
            return
        if message["type"] == "http.response.start":
            if self.of_call and message["status"] == 500:
                message["status"] = 400
            self.begun, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            for name in [each for each in headers if each.startswith("access-control-")]:
                del headers[name]
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


def _method(scope: dict[str, Any] | Scope) -> str:
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return str(scope["method"]) if scope["method"] in known else "other"


def _route(scope: dict[str, Any] | Scope) -> str:
    """The route's pattern, of which there are few, whatever paths clients think up."""
    route = scope.get("route")
    path = getattr(route, "path", "")
    if path:
        return str(path)
    return "page" if scope["path"] == "/" or scope["path"].startswith("/gradio_api/") else "other"
