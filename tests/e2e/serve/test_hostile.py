"""Hostile and slow clients do not affect the server."""

from __future__ import annotations

import io
import re
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from PIL import Image

from tests.hostile_pictures import many_scans
from tests.processes import children_running
from tests.serving import Server
from tests.until import until

TEXTS = "application/x-www-form-urlencoded"


@pytest.fixture(autouse=True)
def server_is_well(server: Server) -> Iterator[None]:
    yield
    assert server.process.poll() is None
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.create(num_frames=1, num_inference_steps=1)["status"] == "queued"


def connected(server: Server) -> socket.socket:
    where = urlsplit(server.url)
    assert where.hostname is not None
    return socket.create_connection((where.hostname, where.port or 0), timeout=20)


def exchange(server: Server, content: bytes) -> bytes:
    """The start of the response, with its head; empty if the connection is closed."""
    response = b""
    with connected(server) as connection:
        try:
            connection.sendall(content)
            while b"\r\n\r\n" not in response and (part := connection.recv(65536)):
                response += part
        except ConnectionError:
            pass
    return response


def head(server: Server, first: str, *lines: str) -> bytes:
    host = urlsplit(server.url).netloc
    return "\r\n".join([first, f"Host: {host}", *lines, "", ""]).encode("latin-1")


def counted(server: Server) -> dict[str, float]:
    """Number of responses so far, by status."""
    counts: dict[str, float] = {}
    pattern = r'longtake_http_requests_total{.*status="(\d+)"} (\S+)'
    for status, count in re.findall(pattern, server.client.get("/metrics").text):
        counts[status] = counts.get(status, 0) + float(count)
    return counts


def test_invalid_request_heads_are_refused(server: Server) -> None:
    json = "Content-Type: application/json"
    post, close = "POST /v1/videos HTTP/1.1", "Connection: close"
    for content in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",  # no host
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        head(server, "GET http://169.254.169.254/latest HTTP/1.1", close),
        head(server, "GET /health HTTP/1.1", "X: " + "a" * 100_000),
        head(server, "GET /health HTTP/1.1", *[f"X-{n}: {'a' * 100}" for n in range(2000)]),
        head(server, "GET /health HTTP/1.1", "X-A : b"),
        head(server, post, json, "Content-Length: 5", "Content-Length: 6") + b"{}{}{}",
        head(server, post, json, "Content-Length: 5", "Transfer-Encoding: chunked", close)
        + b"0\r\n\r\n",
        head(server, post, json, "Transfer-Encoding: xchunked") + b"2\r\n{}\r\n0\r\n\r\n",
        head(server, post, json, "Content-Length: 0x10") + b"{}",
        head(server, post, json, "Content-Length: -1") + b"{}",
        head(server, post, json, f"Content-Length: {'1' * 5000}") + b"{}",
        head(server, post, json, "Content-Length: 999999999999", close),
        head(server, "CONNECT evil.example:80 HTTP/1.1", close),
        head(server, "GET / HTTP/1.1", "Upgrade: websocket", "Connection: close, Upgrade"),
    ):  # fmt: skip
        response = exchange(server, content)
        status = response.split(b" ", 2)[1] if response.startswith(b"HTTP/") else b"none"
        expected = b"200" if b"Upgrade" in content else b"4"  # WebSockets are not spoken
        assert status == b"none" or status.startswith(expected), (content, response)


def test_large_headers_may_arrive_in_parts(server: Server) -> None:
    """Browsers send the cookies of all servers on localhost."""
    content = head(server, "GET /health HTTP/1.1", f"Cookie: a={'b' * 20_000}", "Connection: close")
    with connected(server) as connection:
        for part in (content[:18_000], content[18_000:]):
            connection.sendall(part)
            time.sleep(0.2)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_slow_clients_are_dropped(server: Server) -> None:
    """While they send a head or a body, and between two requests."""
    json = "Content-Type: application/json"

    def drips(content: bytes, rest: bytes) -> tuple[float, bytes]:
        start, response = time.monotonic(), b""
        with connected(server) as connection:
            connection.sendall(content)
            connection.settimeout(0.2)
            while time.monotonic() - start < 15:
                try:
                    connection.sendall(rest)
                    if not (part := connection.recv(4096)):
                        break
                    response += part
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
        return time.monotonic() - start, response

    once = head(server, "GET /health HTTP/1.1")
    body = head(server, "POST /v1/videos HTTP/1.1", json, "Content-Length: 10000")
    form = head(
        server,
        "POST /v1/videos HTTP/1.1",
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Length: 10000",
    )
    cases = [(b"GET /hea", b"l"), (once, b"G"), (body, b" "), (form + b"--x\r\n", b"a")]
    with ThreadPoolExecutor(len(cases)) as pool:
        results = list(pool.map(lambda case: drips(*case), cases))
    assert all(2 < seconds < 12 for seconds, _ in results), results
    assert b" 408 " in results[2][1], results
    assert b" 408 " in results[3][1], results


def test_clients_that_hang_up_cause_no_errors(server: Server) -> None:
    """While they send a head or a body, and during the response: counted as 499, not logged."""
    json, kind = "Content-Type: application/json", "Content-Type: multipart/form-data; boundary=x"
    post, chunks = "POST /v1/videos HTTP/1.1", "Transfer-Encoding: chunked"
    sized = "Content-Length: 5000"
    part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na'
    name = server.create(num_inference_steps=200)["id"]
    watched = ("GET", f"/v1/videos/{name}/events"), ("GET", "/gradio_api/queue/data?session_hash=a")
    contents = {
        "head": [post.encode(), head(server, post, json, sized)[:-2]],
        "body": [
            head(server, post, json, sized),
            head(server, post, json, sized) + b'{"prompt": "a"',
            head(server, post, json, sized, "Expect: 100-continue"),
            head(server, post, json, chunks) + b"5\r\n{",
            head(server, post, json, chunks) + b"1\r\n{\r\nno size\r\n",
            head(server, post, kind, sized) + part,
            head(server, "POST /login HTTP/1.1", "Content-Type: " + TEXTS, sized) + b"key",
            head(server, "POST /picture HTTP/1.1", "Content-Type: image/png", sized) + b"PNG",
            head(server, "POST /gradio_api/run/predict HTTP/1.1", json, sized) + b"{",
        ],
        "response": [head(server, f"{method} {path} HTTP/1.1") for method, path in watched],
    }
    before = counted(server)
    for content in [each for several in contents.values() for each in several]:
        for abruptly in (False, True):
            with connected(server) as connection:
                connection.sendall(content)
                time.sleep(0.05)
                if abruptly:  # RST instead of FIN
                    connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
    expected = 2 * len(contents["body"])
    until(lambda: counted(server).get("499", 0) - before.get("499", 0) >= expected)
    server.client.delete(f"/v1/videos/{name}")
    after = counted(server)
    assert after.get("499", 0) - before.get("499", 0) == expected
    assert {status for status in after if status[0] == "5"} <= before.keys() | {"503"}
    assert "Traceback" not in server.log.read_text()


def test_slow_picture_is_refused_and_delays_no_other(server: Server) -> None:
    """Its memory is freed."""
    content, plain = io.BytesIO(), many_scans()
    Image.new("RGB", (64, 64)).save(content, "PNG")
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss

    def sent(picture: bytes) -> tuple[float, httpx.Response]:
        start = time.monotonic()
        response = httpx.post(server.url + "/picture", content=picture, timeout=120)
        return time.monotonic() - start, response

    with ThreadPoolExecutor(1) as pool:
        hostile = pool.submit(sent, plain)
        until(lambda: children_running("longtake.engine.media.pictures.decoder", process))
        seconds, response = sent(content.getvalue())
        assert response.status_code == 200, response.text
        assert not hostile.done(), seconds
        _, refused = hostile.result()
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "the picture takes more than 5 s to decode: save it as a baseline JPEG or PNG"
    )
    assert process.memory_info().rss - before < 2**26


def test_clients_that_do_not_read_are_dropped(server: Server) -> None:
    """They keep their connection open."""
    request = head(server, "GET /openapi.json HTTP/1.1")
    whole = len(server.client.get("/openapi.json").content)
    process = psutil.Process(server.process.pid)

    def open_connections() -> int:
        found = process.net_connections()
        return sum(each.status == psutil.CONN_ESTABLISHED for each in found)

    before = open_connections()
    slow = [connected(server) for _ in range(5)]
    try:
        for connection in slow:
            connection.sendall(request * (20 * 2**20 // whole))
        until(lambda: open_connections() >= before + 5)
        assert server.client.get("/health").status_code == 200
        until(lambda: open_connections() <= before + 1)
    finally:
        for connection in slow:
            connection.close()


def test_silent_connections_are_closed(server: Server) -> None:
    silent = [connected(server) for _ in range(200)]
    start = time.monotonic()
    assert server.client.get("/health").status_code == 200
    assert time.monotonic() - start < 2
    for connection in silent:
        connection.settimeout(15)
        assert connection.recv(1) == b""  # closed by the server
        connection.close()
    assert time.monotonic() - start < 12


def test_gradios_own_routes_are_closed(server: Server) -> None:
    """The page needs none of their files, URLs, uploads and calls."""
    client = server.client
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=https://example.org/",
        "/gradio_api/run-history/buckets",
        "/gradio_api/runs",
        "/gradio_api/deep_link",
        "/gradio_api/stream/x/1/2/playlist.m3u8",
        "/gradio_api/custom_component/x/y/z/a.js",
        "/gradio_api/upload_progress?upload_id=x",
        "/gradio_api/openapi.json",
        "/gradio_api/call/x/y",
        "/gradio_api/queue/data?session_hash=x",
        "/gradio_api/queue/status",
        "/gradio_api/heartbeat/x",
        "/gradio_api/info?page=x",
        "/monitoring",
        "/monitoring/summary",
        "/pwa_icon",
        "/login_check",
        "/token",
        "/static/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/svelte//etc/passwd",
        "//etc/passwd",
    ):
        response = client.get(path)
        assert response.status_code in (400, 403, 404), path
        assert "root:" not in response.text
    for path in (
        "/gradio_api/upload",
        "/gradio_api/run/predict",
        "/gradio_api/api/predict",
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/gradio_api/call/predict",
        "/gradio_api/call/v2/predict",
        "/gradio_api/component_server",
        "/gradio_api/run-history/connect",
        "/gradio_api/vibe-edit",
        "/gradio_api/stream/x",
        "/gradio_api/process_recording",
        "/gradio_api/reload",
    ):
        assert client.post(path, files={"files": b"x"}).status_code == 404, path


def test_cross_origin_requests_are_not_allowed(server: Server) -> None:
    """Gradio's default allows them."""
    response = server.client.get("/config", headers={"origin": "https://other.example"})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_calls_of_the_page_do_not_take_up_memory(server: Server) -> None:
    """Many calls of many sessions."""
    client = server.client
    functions = client.get("/config").json()["dependencies"]
    seen = next(each for each in functions if each["targets"][0][1] == "tick")
    assert not any(each["queue"] for each in functions)
    data = [""] * len(seen["inputs"])

    def send(count: int) -> None:
        for number in range(count):
            call = {"data": data, "fn_index": seen["id"], "session_hash": f"{number}" * 30_000}
            response = client.post("/gradio_api/run/predict", json=call)
            assert response.status_code == 200, response.text
            for path in ("/gradio_api/queue/join", "/gradio_api/call/predict"):
                assert client.post(path, json=call).status_code == 404
            if number % 10 == 0:
                assert client.get(f"/?page={number}").status_code == 200

    process = psutil.Process(server.process.pid)
    send(150)
    before = process.memory_info().rss
    send(300)
    assert process.memory_info().rss - before < 10 * 2**20


def test_invalid_arguments_of_the_pages_calls_are_refused(server: Server) -> None:
    """Each handler answers with an error of the page."""
    client = server.client
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    handlers = [each for each in config["dependencies"] if each["backend_fn"]]
    assert len(handlers) > 8
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    url = {"path": "x", "url": "http://127.0.0.1:1/", "meta": {"_type": "gradio.FileData"}}
    odd: list[Any] = [[], {}, file, url, {**file, "path": "/dev/zero"}, [file], {"a": [url]}]
    plain: list[Any] = [None, 5, True, "../../etc/passwd", "x" * 1000, 1e308, "😀\0"]
    for number, handler in enumerate(handlers):
        for value in [*odd, *plain]:
            data = [value] * len(handler["inputs"])
            body = {"data": data, "fn_index": handler["id"], "session_hash": f"s{number}"}
            response = client.post("/gradio_api/run/predict", json=body)
            expected = (400,) if value in odd and data else (200, 400, 429, 503)
            assert response.status_code in expected, (value, response.text)
    for other in (each for each in config["dependencies"] if not each["backend_fn"]):
        body = {"data": [""] * len(other["inputs"]), "fn_index": other["id"]}
        assert client.post("/gradio_api/run/predict", json=body).status_code == 400
    call = {"data": [], "fn_index": 0, "session_hash": "a"}
    for extra in ({"event_data": file}, {"event_data": {"a": file}}, {"request": url}):
        assert client.post("/gradio_api/run/predict", json={**call, **extra}).status_code == 400
    big = {**call, "data": ["x" * 300_000]}
    assert client.post("/gradio_api/run/predict", json=big).status_code == 413
    none: list[Any] = [[], {}, {"data": 5}, {"data": [], "fn_index": 10**9, "session_hash": "a"}]
    for each in none:
        response = client.post("/gradio_api/run/predict", json=each)
        assert response.status_code < 500
    until(lambda: client.get("/health").status_code == 200)
    assert "Traceback" not in server.log.read_text()
    listed = client.get("/v1/videos?limit=100").json()["data"]
    assert "root:" not in str(listed)
    for folder in (server.folder, Path(tempfile.gettempdir()) / "gradio"):
        assert not list(folder.rglob("*passwd*"))
