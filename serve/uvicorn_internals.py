"""Extensions of uvicorn beyond its documented options. No other module depends on its internals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class Server(uvicorn.Server):
    """A server that leaves signals to its caller and announces its shutdown.

    Args:
        config: uvicorn's configuration.
        on_shutdown: Called before the server waits for open responses, to end event streams.
    """

    def __init__(self, config: uvicorn.Config, on_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_shutdown = on_shutdown

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers. With uvicorn's, a second signal aborts responses, and all
        signals are raised again at the end."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Call ``on_shutdown``, then shut down."""
        self._on_shutdown()
        await super().shutdown(sockets)


def protocol_with_timeouts(headers_s: float, write_s: float) -> type[asyncio.Protocol]:
    """An HTTP/1.1 protocol that disconnects slow clients.

    uvicorn itself limits only the time between two requests.

    Args:
        headers_s: Maximum seconds from connecting, or from the first byte of a request, to the end
            of the headers.
        write_s: Maximum seconds in which a client reads nothing of a response.
    """
    timeouts = {"headers_s": headers_s, "write_s": write_s}
    return type("TimedProtocol", (_TimedProtocol,), timeouts)


class _TimedProtocol(H11Protocol):
    headers_s: float
    write_s: float
    _headers_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_headers_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_headers_timer()
        elif self._headers_timer is None:
            self._start_headers_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_headers_timer()  # asyncio fails if a transport that has ended is aborted
        super().connection_lost(exc)

    def _start_headers_timer(self) -> None:
        self._headers_timer = self.loop.call_later(self.headers_s, self.transport.abort)

    def _stop_headers_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None
