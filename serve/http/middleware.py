"""Middleware in front of the API and the page: access, limits, security headers, counts."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longtake.serve.http.access import Access
from longtake.serve.http.problems import Problem
from longtake.serve.http.request.body import ByteBudget, LimitedBody, too_large

logger = logging.getLogger(__name__)

PUBLIC_PATHS = ("/health", "/ready", "/login")
"""Paths that need no key; they reveal nothing about videos."""

_API_PATHS = re.compile(r"/(v1/.*|health|ready|metrics|login|logout|picture|openapi\.json)")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MAX_HEADER_BYTES = 32 * 1024
_MAX_BYTES_IN_FLIGHT = 2**28
"""Limit on the request bodies in memory at one time."""
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'",
}


@dataclass(frozen=True)
class PageApp:
    """The page's application.

    Attributes:
        app: The application.
        paths: Patterns of the paths that it serves, by method.
    """

    app: ASGIApp
    paths: Mapping[str, re.Pattern[str]]

    def serves(self, method: str, path: str) -> bool:
        """Whether the page serves a path."""
        allowed = self.paths.get("GET" if method == "HEAD" else method)
        return allowed is not None and allowed.fullmatch(path) is not None


@dataclass(frozen=True)
class BodyLimits:
    """Limits on a request's body.

    Attributes:
        max_bytes: Maximum size.
        timeout_s: Maximum time for the whole body to arrive.
    """

    max_bytes: int
    timeout_s: float


class RequestFilter:
    """ASGI middleware that refuses requests or passes them on to the API or the page.

    Args:
        api: The API.
        page: The page; None if only the API is served.
        access: Access rules.
        limits: Limits on request bodies.
        on_response: Called after each response with its method, route and status; the status is
            499 if the client disconnected before the response began.
        stopping: Returns whether the server is stopping; it then cancels responses.
    """

    def __init__(
        self,
        api: ASGIApp,
        page: PageApp | None,
        access: Access,
        limits: BodyLimits,
        on_response: Callable[[str, str, int], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._api = api
        self._page = page
        self._access = access
        self._limits = limits
        self._on_response = on_response
        self._stopping = stopping
        self._budget = ByteBudget(_MAX_BYTES_IN_FLIGHT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._api(scope, receive, send)
            return
        limits = self._limits
        body = LimitedBody(receive, limits.max_bytes, limits.timeout_s, self._budget)
        response = _ResponseSender(send, body)
        try:
            await (self._refusal(scope) or self._app(scope))(scope, body, response)
        except ClientDisconnect:
            logger.debug("a client disconnected: %s %s", _method(scope), _route(scope))
        except asyncio.CancelledError:
            if not self._stopping():
                raise
        finally:
            body.release()
            self._on_response(_method(scope), _route(scope), response.status)

    def _app(self, scope: Scope) -> ASGIApp:
        if self._page is None or _API_PATHS.fullmatch(scope["path"]):
            return self._api
        return self._page.app

    def _refusal(self, scope: Scope) -> Response | None:
        """The response that refuses a request; None if the request is allowed.

        Afterwards, ``scope["client_label"]`` is the label of the client's key.
        """
        connection, method, path = HTTPConnection(scope), scope["method"], scope["path"]
        headers = connection.headers
        # uvicorn limits only headers that arrive in several parts.
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER_BYTES:
            return Problem(431, f"more than {MAX_HEADER_BYTES} bytes of headers").response()
        if not self._access.is_trusted(method, connection):
            return Problem(
                403, "sent by another site, or to an unknown name of this host"
            ).response()
        label = self._access.label_of(connection)
        scope["client_label"] = label or ""
        if label is None and path not in PUBLIC_PATHS:
            return _key_required(method, path)
        of_page = self._page is not None and self._page.serves(method, path)
        if not (_API_PATHS.fullmatch(path) or of_page):
            return Problem(404, "not found: GET /openapi.json lists the API").response()
        max_bytes = self._limits.max_bytes
        if int(headers.get("content-length", "0")) > max_bytes:  # a number: h11 refuses others
            return too_large(max_bytes).response()
        return None


class _ResponseSender:
    """An ASGI ``send`` that adds security headers and records the status.

    Attributes:
        status: Status of the response; 499 until the response begins.
    """

    def __init__(self, send: Send, body: LimitedBody) -> None:
        self._send = send
        self._body = body
        self.status = 499

    async def __call__(self, message: Message) -> None:
        if self._body.disconnected:  # nobody would receive the response
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            # Gradio allows requests from other origins.
            for name in [each for each in headers if each.startswith("access-control-")]:
                del headers[name]
            headers.update(_SECURITY_HEADERS)
        await self._send(message)


def _key_required(method: str, path: str) -> Response:
    if path == "/" and method in ("GET", "HEAD"):
        return RedirectResponse("/login", 303)
    return Problem(
        401,
        "no valid API key: send Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    ).response()


def _method(scope: Scope) -> str:
    """The method as a label of a metric. Unknown methods share one label."""
    return str(scope["method"]) if scope["method"] in _METHODS else "other"


def _route(scope: Scope) -> str:
    """The pattern of the route as a label of a metric."""
    path = getattr(scope.get("route"), "path", "")
    if path:
        return str(path)
    return "page" if scope["path"] == "/" or scope["path"].startswith("/gradio_api/") else "other"
