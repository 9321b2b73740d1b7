"""uvicorn's internals match :mod:`longtake.serve.uvicorn_internals`."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from longtake.serve.uvicorn_internals import Server, _TimedProtocol, protocol_with_timeouts
from tests.until import until

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
LARGE, PART = 2**25, 2**16


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """``/large`` is sent in parts, ``/slow`` after more than the time limits; others at once."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.8)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(LARGE // PART if scope["path"] == "/large" else 0):
        await send({"type": "http.response.body", "body": b"a" * PART, "more_body": True})
    await send({"type": "http.response.body", "body": b"a"})


@contextmanager
def running(events: list[str]) -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            application,
            http=protocol_with_timeouts(0.5, 0.5),
            lifespan="off",
            log_config=None,
            timeout_keep_alive=2,
        )
        server = Server(config, lambda: events.append("shutdown"))
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        until(lambda: server.started)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def closed_after(port: int, content: bytes, *, read: bool = True) -> float:
    """Seconds until the server closes a connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        began = time.monotonic()
        connection.sendall(content)
        if not read:
            time.sleep(1.5)
        received = 0
        try:
            while part := connection.recv(2**16):
                received += len(part)
        except ConnectionError:
            pass
        assert read or received < LARGE
        return time.monotonic() - began


def test_slow_clients_are_dropped_and_shutdown_is_announced() -> None:
    events: list[str] = []
    with running(events) as port:
        assert closed_after(port, b"") < 1.5
        assert closed_after(port, HEAD) < 1.5
        assert closed_after(port, HEAD + b"\r\n") > 1.5  # idle between two requests
        assert closed_after(port, HEAD.replace(b"/", b"/large", 1) + b"\r\n", read=False) < 5
        assert not events
    assert events == ["shutdown"]


def test_clients_within_the_limits_are_not_dropped() -> None:
    with running([]) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(HEAD.replace(b"/", b"/slow", 1) + b"\r\n")
        assert client.recv(2**16).startswith(b"HTTP/1.1 200")
    with running([]) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(HEAD.replace(b"/", b"/large", 1) + b"Connection: close\r\n\r\n")
        received, began = 0, time.monotonic()
        while part := client.recv(2**20):
            received += len(part)
            time.sleep(0.05)
        assert received > LARGE
        assert time.monotonic() - began > 1


def test_a_second_request_is_limited_like_the_first() -> None:
    with running([]) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(HEAD + b"\r\n")
        response = b""
        while not response.endswith(b"\r\n0\r\n\r\n"):
            response += client.recv(2**16)
        began = time.monotonic()
        client.sendall(HEAD)
        assert client.recv(2**16) == b""
        assert time.monotonic() - began < 1.5


def test_timer_ends_with_its_connection() -> None:
    """asyncio logs an error if the transport is aborted once its buffer is sent and it is gone."""
    made: list[_TimedProtocol] = []

    async def connect_and_leave() -> None:
        config = uvicorn.Config(application, lifespan="off", log_config=None)
        config.load()
        kind = protocol_with_timeouts(60, 60)

        def make() -> _TimedProtocol:
            made.append(kind(config, ServerState(), {}))  # type: ignore[call-arg, arg-type]
            return made[-1]

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(HEAD)
        writer.close()
        deadline = time.monotonic() + 10
        while not made or made[0]._headers_timer is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        server.close()

    asyncio.run(connect_and_leave())


def test_signals_are_left_to_the_caller() -> None:
    server = Server(uvicorn.Config(application), lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with server.capture_signals():
        assert signal.getsignal(signal.SIGTERM) is before
