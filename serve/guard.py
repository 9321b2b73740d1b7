"""What stands before the whole application: who may come in, how much, and how slowly."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longtake.errors import one_line
from longtake.serve.access import Access
from longtake.serve.problems import Problem

logger = logging.getLogger(__name__)

OPEN = ("/health", "/ready", "/login")
"""What answers without a key, and says nothing of any video."""

_OWN = re.compile(r"/(v1/.*|health|ready|metrics|login|logout|openapi\.json)", re.DOTALL)
_OF_PAGE = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
        r"|/(static|assets|svelte)/[\w./@+-]+"
        r"|/gradio_api/(startup-events|theme\.css|info/?|queue/data|heartbeat/\w+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join/?|reset/?|cancel)"),
}
"""All that the page needs of Gradio. It has no way to send or to fetch a file or a URL."""

_CALLS = "/gradio_api/"
"""What is amiss there is the client's fault: faults of the page itself are told in its queue."""

_MOST_HEADER_BYTES = 32 * 1024
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
    """An ASGI application before another.

    Args:
        app: behind it.
        access: who may come in.
        most_bytes: of a request's body.
        timeout_s: for a whole request, and for each part of an answer.
        answered: told of each answer: method, route, status.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        *,
        most_bytes: int,
        timeout_s: float,
        answered: Callable[[str, str, int], None],
    ) -> None:
        self._app = app
        self._access = access
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page of ours opens a socket
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send, self._timeout_s, of_page=scope["path"].startswith(_CALLS))
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, answer)
            else:
                limited = _Limited(receive, self._most_bytes, self._timeout_s)
                await self._app(scope, limited, answer)
        except _TooSlowToTakeError:
            pass  # the connection is closed by what is behind
        except Exception as error:
            if not answer.of_page:
                raise
            logger.warning("the page was sent what no page sends: %s", one_line(error)[:200])
            if not answer.begun:
                await Problem(400, "no page sends this").answer()(scope, receive, answer)
        finally:
            self._answered(_method(scope), _route(scope), answer.status)

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
        if not _OWN.fullmatch(path) and not (allowed and allowed.fullmatch(path)):
            return Problem(404, "there is nothing here").answer()
        if ".." in path.split("/"):
            return Problem(404, "there is nothing here").answer()
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > self._most_bytes:
            return _too_large(self._most_bytes).answer()
        return None


class _Limited:
    """A request's body, of so many bytes at most, and within so many seconds."""

    def __init__(self, receive: Receive, most_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._left = self._most_bytes = most_bytes
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:  # then what comes is that the client has gone
            return await self._receive()
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
            self._left -= len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._left < 0:
                raise _too_large(self._most_bytes)
        return message


class _TooSlowToTakeError(Exception):
    """A client does not take what it asked for."""


class _Answer:
    """What is sent to a client, with headers that keep a browser from doing more than it should."""

    def __init__(self, send: Send, timeout_s: float, *, of_page: bool) -> None:
        self._send = send
        self.of_page = of_page
        self._timeout_s = timeout_s
        self.begun = False
        self.status = 499
        """Until there is an answer: the client has gone before."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.of_page and message["status"] == 500:
                message["status"] = 400
            self.begun, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            for name in [each for each in headers if each.startswith("access-control-")]:
                del headers[name]
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        try:
            await asyncio.wait_for(self._send(message), self._timeout_s)
        except asyncio.TimeoutError as error:
            raise _TooSlowToTakeError from error


def _too_large(most_bytes: int) -> Problem:
    return Problem(
        413,
        f"the request has more than {most_bytes // 2**20} MiB, which are the most: make the "
        "picture smaller",
        headers={"connection": "close"},
    )


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
