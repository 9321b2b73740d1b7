"""API keys, sessions, and requests of other sites."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from longtake.serve.http.access import SESSION_S, Access
from tests.standin import GrayRanks, gray_server
from tests.unit.serve.http.helpers import Gray, refused
from tests.until import until

KEY = "a-key-of-some-length"


def test_one_of_several_keys_cannot_fill_the_queue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = (KEY, "another-key-of-it")
    limits: dict[str, Any] = {"api_key": keys, "most_waiting": 4, "most_waiting_per_key": 2}
    with gray_server(monkeypatch, tmp_path, **limits) as (client, service):
        GrayRanks.hold = True
        headers = [{"authorization": f"Bearer {key}"} for key in keys]
        first = client.post("/v1/videos", json={"prompt": "a"}, headers=headers[0]).json()["id"]
        url = f"/v1/videos/{first}"
        until(lambda: client.get(url, headers=headers[0]).json()["status"] == "in_progress")
        codes = [
            client.post("/v1/videos", json={"prompt": "a"}, headers=headers[who]).status_code
            for who in (0, 0, 0, 1, 1, 1)
        ]
        assert codes == [200, 200, 429, 200, 200, 429]
        # One idempotency key of two clients is two videos.
        sent = [
            client.post(
                "/v1/videos", json={"prompt": "z"}, headers={**each, "Idempotency-Key": "1"}
            )
            for each in headers
        ]
        assert [each.status_code for each in sent] == [429, 429]


def test_api_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with gray_server(monkeypatch, tmp_path, api_key=(KEY,), host="0.0.0.0") as (client, _):
        until(lambda: client.get("/ready").status_code == 200)
        for path in ("/health", "/ready", "/login"):
            assert client.get(path).status_code in (200, 303)
        for path in (
            "/v1/videos",
            "/v1/models",
            "/metrics",
            "/openapi.json",
            "/v1/videos/x/content",
        ):
            error = refused(client.get(path), 401)
            assert error["code"] == "invalid_api_key"
            for wrong in (
                "Bearer x",
                f"Bearer {KEY}x",
                f"Basic {KEY}",
                KEY,
                "Bearer",
                "Bearer \xff",
            ):
                headers = {b"authorization": wrong.encode("latin-1")}
                refused(client.get(path, headers=headers), 401)
        good = {"authorization": f"Bearer {KEY}"}
        assert client.get("/v1/videos", headers=good).status_code == 200
        assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "/login"


def test_a_login_opens_a_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with gray_server(monkeypatch, tmp_path, api_key=(KEY,)) as (client, _):
        assert "API key" in client.get("/login").text
        wrong = client.post("/login", data={"key": "nonsense"})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
        right = client.post("/login", data={"key": KEY})
        assert (right.status_code, right.headers["location"]) == (303, "/")
        attributes = right.headers["set-cookie"].lower()
        assert "httponly" in attributes
        assert "samesite=strict" in attributes
        assert KEY not in attributes
        assert client.get("/v1/videos").status_code == 200  # by the cookie
        cookie = client.cookies["longtake_session"]
        label, signed_at, signature = cookie.split(".")
        flipped = "B" if signature[0] == "A" else "A"
        tampered = [
            f"{label}.{signed_at}.{flipped}{signature[1:]}",
            f"{label}.{flipped}{signed_at}.{signature}",
            f"{label[1:]}.{signed_at}.{signature}",
        ]
        for other in (*tampered, cookie[1:], "..", "a.b.c", f"{cookie}.x", "x"):
            client.cookies.clear()
            client.cookies.set("longtake_session", other)
            refused(client.get("/v1/videos"), 401)


def test_cross_site_requests_and_unknown_hosts_are_refused(gray: Gray) -> None:
    client, _ = gray
    body = {"prompt": "a", "num_frames": 1}
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": ""},
        {"origin": "http://[x"},
        {"host": "127.0.0.1.evil.example"},
    ):
        refused(client.post("/v1/videos", json=body, headers=headers), 403)
        if "host" in headers:
            refused(client.get("/v1/videos", headers=headers), 403)
    for host in ("LOCALHOST:8000", "localhost.", "[::1]:8000", "[::1]"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    headers = {"host": "LOCALHOST:8000", "origin": "http://localhost:8000"}
    assert client.post("/v1/videos", json=body, headers=headers).status_code == 200
    same = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    answer = client.post("/v1/videos", json=body, headers=same)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    preflight = client.options("/v1/videos", headers={"origin": "https://evil.example"})
    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in preflight.headers


def test_a_removed_key_ends_its_sessions() -> None:
    first, both = Access((KEY,), "127.0.0.1"), Access(("another-key-of-it", KEY), "127.0.0.1")
    label = first.label_of_key(KEY)
    assert label is not None
    cookie = f"longtake_session={first.new_session(label)}".encode()
    connection = HTTPConnection({"type": "http", "headers": [(b"cookie", cookie)]})
    assert first.label_of(connection) == both.label_of(connection) == label
    assert Access(("another-key-of-it",), "127.0.0.1").label_of(connection) is None


def test_the_listening_address_is_a_known_host() -> None:
    long_loopback = "0:0:0:0:0:0:0:1"
    for listening, host, trusted in (
        ("127.0.0.2", "127.0.0.2:80", True),
        ("127.0.0.2", "127.0.0.3:80", False),
        (long_loopback, f"[{long_loopback}]:80", True),
    ):
        connection = HTTPConnection({"type": "http", "headers": [(b"host", host.encode())]})
        assert Access((), listening).is_trusted("GET", connection) is trusted


def test_a_session_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access((KEY,), "127.0.0.1")
    label = access.label_of_key(KEY)
    assert label is not None
    cookie = f"longtake_session={access.new_session(label)}".encode()
    connection = HTTPConnection({"type": "http", "headers": [(b"cookie", cookie)]})
    opened = time.time()
    monkeypatch.setattr(time, "time", lambda: opened + SESSION_S - 60)
    assert access.label_of(connection) == label
    monkeypatch.setattr(time, "time", lambda: opened + SESSION_S + 60)
    assert access.label_of(connection) is None
