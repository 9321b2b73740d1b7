"""The server: one service, its API and its page, on one port."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from longtake.configs.commands.serve import ServeConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.supervisor import Supervisor
from longtake.errors import RequestError
from longtake.serve.http.access import Access, is_local
from longtake.serve.http.api import build_api
from longtake.serve.http.login import add_login
from longtake.serve.http.middleware import MAX_HEADER_BYTES, BodyLimits, PageApp, RequestFilter
from longtake.serve.http.picture_upload import PictureLimit, add_picture_upload
from longtake.serve.http.video_object import VideoObjects
from longtake.serve.http.video_routes import VideoRoutes
from longtake.serve.service.render_loop import RenderLoop
from longtake.serve.service.service import VideoService
from longtake.serve.uvicorn_internals import Server, protocol_with_timeouts

_HEADERS_TIMEOUT_S = 15.0
_MAX_CONNECTIONS = 512
_KEEP_ALIVE_S = 10
_SHUTDOWN_S = 3


def serve(
    config: EngineConfig,
    settings: ServeConfig,
    snapshots: SnapshotConfig,
    on_listening: Callable[[str], None],
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. Must be called in the main thread.

    When it returns, the ranks have ended. Unfinished videos resume at the next start.

    Args:
        config: The model and its ranks.
        settings: The server's settings.
        snapshots: How often snapshots are written.
        on_listening: Called once with the server's URL, before the model is loaded.

    Raises:
        RefusedInputError: The model, the folder or the address cannot be used.
        EngineError: The folder cannot be written.
    """
    if not settings.api_key and not is_local(settings.host):
        raise RequestError(
            f"host={settings.host!r} accepts other hosts, and there is no API key: set "
            "LONGTAKE_API_KEY, or listen on 127.0.0.1"
        )
    with _listen(settings) as listener:

        def stop() -> None:
            server.should_exit = True

        service = build_service(config, settings, snapshots, stop)
        server = Server(_uvicorn_config(service, settings), service.stop)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_listening(f"http://{host}:{listener.getsockname()[1]}")
        with _handle_signals(stop):
            try:
                server.run([listener])
            finally:
                service.close()
    if service.ranks.failure is not None:
        raise service.ranks.failure


def build_service(
    config: EngineConfig,
    settings: ServeConfig,
    snapshots: SnapshotConfig,
    on_failure: Callable[[], None] = lambda: None,
) -> VideoService:
    """A service that renders its queue after :meth:`VideoService.start`.

    Args:
        config: The model and its ranks.
        settings: The server's settings.
        snapshots: How often snapshots are written.
        on_failure: Called if the model is refused at the first start.

    Raises:
        RefusedInputError: The model or the folder cannot be used.
        EngineError: The folder cannot be written.
    """
    service = VideoService(config, settings)

    def make_ranks() -> Supervisor:
        return Supervisor(
            service.unplaced_config, service.scratch, service.progress.note, service.stop_event.wait
        )

    service.background.append(RenderLoop(service, make_ranks, snapshots, on_failure).run)
    return service


def build_application(service: VideoService, settings: ServeConfig) -> RequestFilter:
    """The ASGI application: the API and, if enabled, the page, behind the request filter."""
    access = Access(settings.api_key, settings.host)
    objects = VideoObjects(service.engine.spec, service.eta, service.folder, settings.keep_s)
    limit = PictureLimit()
    page = page_app = None
    if settings.page:
        # Gradio reads both variables when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(service.scratch)
        from longtake.serve.page.gradio_internals import PAGE_PATHS
        from longtake.serve.page.web import build_page

        page = build_page(service, objects)
        page_app = PageApp(page, PAGE_PATHS)
    api = build_api(service, VideoRoutes(service, objects, limit).router(), page)
    add_login(api, access)
    if page is not None:
        add_picture_upload(api, service.pictures, limit)
    return RequestFilter(
        api,
        page_app,
        access,
        BodyLimits(settings.most_upload_mib * 2**20, settings.request_timeout_s),
        service.metrics.count_response,
        lambda: service.progress.stopping,
    )


def _uvicorn_config(service: VideoService, settings: ServeConfig) -> uvicorn.Config:
    timeout_s = settings.request_timeout_s
    return uvicorn.Config(
        build_application(service, settings),
        http=protocol_with_timeouts(min(_HEADERS_TIMEOUT_S, timeout_s), timeout_s),
        ws="none",  # the request filter handles HTTP only
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,  # of headers that arrive in parts
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )


def _listen(settings: ServeConfig) -> socket.socket:
    """A listening socket. It is bound before the model is loaded, so that early clients wait."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
        return listener
    except OSError as error:
        raise RequestError(
            f"{settings.host} port {settings.port} cannot be listened on "
            f"({error.strerror or error}): name another --port, or 0 for a free one"
        ) from error


@contextmanager
def _handle_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have signals that end a process call ``stop``, which must not acquire locks.

    Repeated signals have no further effect. Ignored signals stay ignored, as with ``nohup``.
    """
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    previous = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
