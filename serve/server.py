"""A server: one service, its API and its page, on one port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from longtake.configs.engine import EngineConfig
from longtake.configs.serve import ServeConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.errors import RequestError
from longtake.serve.http.access import Access, is_local
from longtake.serve.http.api import api_of
from longtake.serve.http.login import add_login
from longtake.serve.http.middleware import Guard
from longtake.serve.service.service import VideoService

_MOST_HEADER_BYTES = 32 * 1024
_MOST_CONNECTIONS = 512
_LAST_ANSWERS_S = 3


def serve(
    config: EngineConfig,
    settings: ServeConfig,
    how_often: SnapshotConfig,
    listening: Callable[[str], None],
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; what was begun goes on the next time.

    Call it in the main thread. When it returns, the ranks have ended.

    Args:
        listening: told, once, at which address.

    Raises:
        RefusedInputError: the model, the folder or the address cannot be used.
        EngineError: the folder cannot be written.
    """
    if not settings.api_key and not is_local(settings.host):
        raise RequestError(
            f"host={settings.host!r} lets others in, and there is no API key: set "
            "LONGTAKE_API_KEY, or listen on 127.0.0.1"
        )
    listener = _listener(settings)
    with listener:
        server: uvicorn.Server | None = None

        def end() -> None:
            if server is not None:
                server.should_exit = True

        service = VideoService(config, settings, how_often, end)
        server = _Server(_configured(service, settings))
        server.stopping = service.stop
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        listening(f"http://{host}:{listener.getsockname()[1]}")
        with _signals_to(end):
            try:
                server.run([listener])
            finally:
                service.close()
    if service.failure is not None:
        raise service.failure


def application_of(service: VideoService, settings: ServeConfig) -> Guard:
    """All that answers requests."""
    access = Access(settings.api_key, settings.host)
    page = None
    if settings.page:  # what is in the environment is read while it is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(service.scratch)
        from longtake.serve.page.web import page_of

        page = page_of(service)
    app = api_of(service, page)
    add_login(app, access)
    return Guard(
        app,
        page,
        access,
        most_bytes=settings.most_upload_mib * 2**20,
        timeout_s=settings.request_timeout_s,
        answered=service.metrics.answered,
        stopping=lambda: service.live.stopping,
    )


def _configured(service: VideoService, settings: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        application_of(service, settings),
        http=type(
            "Protocol",
            (_Protocol,),
            {
                "headers_s": min(_Protocol.headers_s, settings.request_timeout_s),
                "taking_s": settings.request_timeout_s,
            },
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )


def _listener(settings: ServeConfig) -> socket.socket:
    """The port, taken before the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # what is accepted takes it over
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(1024)  # who comes before all is ready waits for it
        return listener
    except OSError as error:
        raise RequestError(
            f"{settings.host} port {settings.port} cannot be listened on "
            f"({error.strerror or error}): name another --port, or 0 for a free one"
        ) from error


@contextmanager
def _signals_to(end: Callable[[], None]) -> Iterator[None]:
    """Signals that end a process call ``end``, which takes no lock, and do nothing else: neither
    the second one nor the fiftieth disturbs what the first one began."""
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup asks for
    ]
    before = {number: signal.signal(number, lambda *_: end()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """One that has its service stop before it waits for its last answers."""

    stopping: Callable[[], None]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to :func:`serve`."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; those who follow a video are told to go."""
        self.stopping()
        await super().shutdown(sockets)


class _Protocol(H11Protocol):
    """HTTP/1.1, of clients who send their headers, and take what is answered, within some time."""

    headers_s = 15.0
    taking_s = 60.0
    _stalled: asyncio.TimerHandle | None = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._deadline is None:
            self._wait_for_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()  # between two requests, how long may pass is uvicorn's to say

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.taking_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._goes_on()

    def _goes_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._goes_on()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(self.headers_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
