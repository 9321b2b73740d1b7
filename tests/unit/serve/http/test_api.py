"""The HTTP API with stand-in ranks: valid and invalid requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longtake.configs.commands.serve import ServeConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.errors import RankError, RequestError
from longtake.serve.service.service import VideoService
from tests.standin import GrayRanks, gray_server, objects
from tests.unit.serve.http.helpers import Gray, ended, refused
from tests.until import until


def test_json_and_forms_are_equivalent(gray: Gray) -> None:
    client, _ = gray
    fields = {"prompt": "a", "seconds": "1", "size": "96x64", "seed": 7, "guidance_scale": 2.5}
    as_json = client.post("/v1/videos", json={**fields, "sigmas": [1.0, 0.5]}).json()
    texts = {name: str(value) for name, value in fields.items()}
    as_form = client.post("/v1/videos", data={**texts, "sigmas": "[1.0, 0.5]"}).json()
    listed = client.post("/v1/videos", files=[(n, (None, v)) for n, v in texts.items()]).json()
    parts = client.post("/v1/videos", data={**texts, "sigmas[]": ["1.0", "0.5"]}).json()
    for one in (as_json, as_form, listed, parts):
        assert (one["size"], one["num_frames"], one["seed"]) == ("96x64", 9, 7)
        assert one["guidance_scale"] == 2.5
    steps = [one["num_inference_steps"] for one in (as_json, as_form, listed, parts)]
    assert steps == [2, 2, 24, 2]


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [("2", 17), (2.0, 17), ("0.001", 1), ("0.6", 5), ("1.2", 9), (1, 9), ("2.2", 17), (4, 33)],
)
def test_seconds_are_rounded_to_the_nearest_frames(gray: Gray, seconds: Any, frames: int) -> None:
    client, _ = gray
    video = client.post("/v1/videos", json={"prompt": "a", "seconds": seconds}).json()
    assert video["num_frames"] == frames
    assert video["seconds"] == f"{frames / 8:g}"


BAD: list[tuple[dict[str, Any], str | None]] = [
    ({}, "prompt"),
    ({"prompt": "  "}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "a" * 100_001}, "prompt"),
    ({"prompt": "a", "unknown": 1}, "unknown"),
    ({"prompt": "a", "image": "/etc/passwd"}, "image"),
    ({"prompt": "a", "image_sha256": "0" * 64}, "image_sha256"),
    ({"prompt": "a", "model": "../../etc/passwd"}, "model"),
    ({"prompt": "a", "model": 5}, "model"),
    ({"prompt": "a", "size": "64"}, "size"),
    ({"prompt": "a", "size": "64x65"}, "size"),
    ({"prompt": "a", "size": "0x64"}, "size"),
    ({"prompt": "a", "size": "99999x64"}, "size"),
    ({"prompt": "a", "size": "６４x64"}, "size"),
    ({"prompt": "a", "size": ["64x64"]}, "size"),
    ({"prompt": "a", "size": "64x64", "height": 64}, "size"),
    ({"prompt": "a", "height": 63}, "height"),
    ({"prompt": "a", "height": True}, "height"),
    ({"prompt": "a", "seconds": "soon"}, "seconds"),
    ({"prompt": "a", "seconds": "nan"}, "seconds"),
    ({"prompt": "a", "seconds": "-1"}, "seconds"),
    ({"prompt": "a", "seconds": 1e300}, "seconds"),
    ({"prompt": "a", "seconds": 10**400}, "seconds"),
    ({"prompt": "a", "seconds": False}, "seconds"),
    ({"prompt": "a", "seconds": 1, "num_frames": 5}, "seconds"),
    ({"prompt": "a", "num_frames": 4}, "num_frames"),
    ({"prompt": "a", "seed": -1}, "seed"),
    ({"prompt": "a", "seed": 2**63}, "seed"),
    ({"prompt": "a", "sigmas": [1.0] * 20_000}, "sigmas"),
    ({"prompt": "a", "sigmas": "[1"}, "sigmas"),
    ({"prompt": "a", "prompt_template": "{"}, "prompt_template"),
    ({"prompt": "a", "guidance_scale": "Infinity"}, "guidance_scale"),
    ({"prompt": "a", "i2v_mode": "stable"}, "i2v_mode"),
    ({"prompt": "a", "input_reference": "https://example.org/a.png"}, "input_reference"),
    ({"prompt": "a", "input_reference": "file:///etc/passwd"}, "input_reference"),
    ({"prompt": "a", "input_reference": {"image_url": "http://127.0.0.1:1/"}}, "input_reference"),
    ({"prompt": "a", "input_reference": {"file_id": "../x"}}, "input_reference"),
    ({"prompt": "a", "input_reference": "data:image/png;base64,???"}, "input_reference"),
    ({"prompt": "a", "input_reference": 5}, "input_reference"),
    ({"prompt": "a", "num_frames": 16381, "size": "8192x8192"}, None),
    ({"prompt": "a", "num_inference_steps": 10000, "size": "1024x1024"}, None),
]  # fmt: skip


def test_invalid_fields_are_named(gray: Gray) -> None:
    """Nothing is queued or written."""
    client, service = gray
    for body, param in BAD:
        error = refused(client.post("/v1/videos", content=json.dumps(body)))
        assert error["param"] == param, (body, error)
        assert error["type"] == "invalid_request_error"
        assert str(service.folder) not in error["message"]
    assert client.get("/v1/videos").json()["data"] == []
    assert not list((service.folder / "pictures").iterdir())


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 200_000, "application/json", 400),
        (b'{"prompt": "a", "guidance_scale": NaN}', "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b"", "", 400),
        (b"a: 1", "application/yaml", 415),
        (b"prompt=a", "text/plain", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=x", 400),
        (b"prompt=a&prompt[]=b", "application/x-www-form-urlencoded", 400),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 400),
        (b"&".join(b"a%d=1" % n for n in range(100)), "application/x-www-form-urlencoded", 400),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded", 400),
    ],
)
def test_invalid_bodies(gray: Gray, content: bytes, kind: str, status: int) -> None:
    client, _ = gray
    headers = {"content-type": kind} if kind else {}
    refused(client.post("/v1/videos", content=content, headers=headers), status)


def test_large_bodies_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with gray_server(monkeypatch, tmp_path, most_upload_mib=1) as (client, _):
        big = b"a" * (2**20 + 1)
        refused(client.post("/v1/videos", content=big), 413)
        refused(client.post("/v1/videos", content=(big[:1000] for _ in range(1100))), 413)
        refused(client.post("/v1/videos", files={"input_reference": big}), 413)
        for length in (str(2**21), "1" * 30):  # refused before it is received
            refused(client.post("/v1/videos", content=b"", headers={"content-length": length}), 413)


def test_a_full_queue_says_when_to_retry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with gray_server(monkeypatch, tmp_path, most_waiting=2) as (client, service):
        GrayRanks.hold = True
        first = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
        until(lambda: client.get(f"/v1/videos/{first}").json()["status"] == "in_progress")
        keyed = {"Idempotency-Key": "x"}
        for _ in range(2):
            waiting = client.post("/v1/videos", json={"prompt": "b"}, headers=keyed)
            assert waiting.status_code == 200
        client.post("/v1/videos", json={"prompt": "c"})
        answer = client.post("/v1/videos", json={"prompt": "d"})
        error = refused(answer, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        # A repeated request needs no room.
        again = client.post("/v1/videos", json={"prompt": "b"}, headers=keyed)
        assert again.json()["id"] == waiting.json()["id"]
        assert not client.get(f"/v1/videos/{first}").json()["completed_at"]
        GrayRanks.hold = False
        assert ended(client, first)["status"] == "completed"


def test_errors_of_ranks_hide_the_servers_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with gray_server(monkeypatch, tmp_path, attempts=1) as (client, service):
        GrayRanks.fails = RankError(f"{service.folder}/videos/x.mp4 cannot be written: it is full")
        name = client.post("/v1/videos", json={"prompt": "a", "num_frames": 1}).json()["id"]
        assert ended(client, name)["error"] == {
            "code": "generation_failed",
            "message": "videos/x.mp4 cannot be written: it is full",
        }
        refused(client.get(f"/v1/videos/{name}/content"), 404)


def test_unknown_paths_are_not_found(gray: Gray) -> None:
    client, _ = gray
    for path in (
        "/v1/videos/..%2f..%2fetc%2fpasswd",
        "/v1/videos/..%2f..%2fetc%2fpasswd/content",
        "/v1/videos/%2e%2e/%2e%2e/etc/passwd",
        "/v1/videos/video_%00/content",
        "/v1/videos/%ff/events",
        "/v1/videos/'%20OR%201=1--",
        "/v1/models/..%2f",
        "/static/..%2f..%2fetc%2fpasswd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:8000/health",
        "/file=/etc/passwd",
        "/docs",
        "/.longtake/jobs.sqlite",
        "/videos/",
    ):
        refused(client.get(path), 404)
    for path in ("/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/component_server"):
        refused(client.post(path, files={"files": b"x"}), 404)


def test_several_videos_and_latents(gray: Gray) -> None:
    client, _ = gray
    body = {"prompt": "a", "num_videos": 2, "num_frames": 1}
    name = client.post("/v1/videos", json=body).json()["id"]
    ended(client, name)
    assert client.get(f"/v1/videos/{name}/content?index=1").status_code == 200
    assert refused(client.get(f"/v1/videos/{name}/content?index=2"))["param"] == "index"
    assert refused(client.get(f"/v1/videos/{name}/content?variant=x"))["param"] == "variant"
    body = {"prompt": "a", "output_type": "latents"}
    name = client.post("/v1/videos", json=body).json()["id"]
    assert ended(client, name)["status"] == "completed"
    latents = client.get(f"/v1/videos/{name}/content")
    assert latents.headers["content-type"] == "application/octet-stream"


def test_invalid_list_queries(gray: Gray) -> None:
    client, _ = gray
    for query, param in (
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=many", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("order=up", "order"),
        ("after=video_none", "after"),
    ):
        assert refused(client.get(f"/v1/videos?{query}"))["param"] == param


def test_videos_expire(gray: Gray) -> None:
    client, service = gray
    name = client.post("/v1/videos", json={"prompt": "a", "num_frames": 1}).json()["id"]
    video = ended(client, name)
    service.retention.clean_up(video["completed_at"] - 10)
    assert client.get(f"/v1/videos/{name}/content").status_code == 200
    service.retention.clean_up(video["completed_at"] + 10)
    refused(client.get(f"/v1/videos/{name}"), 404)
    assert not list((service.folder / "videos").iterdir())


def test_models(gray: Gray) -> None:
    client, _ = gray
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("demo", "model")
    assert client.get("/v1/models/demo").json() == model
    refused(client.get("/v1/models/sora-2"), 404)


def test_videos_that_waited_for_another_model_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with gray_server(monkeypatch, tmp_path) as (client, _):
        GrayRanks.hold = True
        name = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
        until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "in_progress")
        with pytest.raises(RequestError, match="is served by another process"):
            VideoService(EngineConfig(), ServeConfig(data_dir=tmp_path))
    with gray_server(monkeypatch, tmp_path, "demo-i2v") as (client, _):
        video = client.get(f"/v1/videos/{name}").json()
        assert (video["status"], video["model"]) == ("failed", "demo")
        assert video["error"]["message"] == (
            "it waited for the model demo, and demo-i2v is served: send it again"
        )


def test_odd_headers_are_no_server_errors(gray: Gray) -> None:
    client, _ = gray
    name = client.post("/v1/videos", json={"prompt": "a", "num_frames": 1}).json()["id"]
    ended(client, name)
    for headers in (
        {"range": "bytes=9-1"},
        {"range": "bytes=a-b"},
        {"range": "lines=1-2"},
        {"range": "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 2000, 2))},
        {"range": "bytes=-" + "9" * 400},
        {"if-range": "x", "range": "bytes=0-1"},
        {"last-event-id": "9" * 4000},
        {"last-event-id": "-1"},
        {"x-forwarded-for": "1.2.3.4, é".encode("latin-1").decode("latin-1")},
        {"x-forwarded-host": "evil.example", "x-forwarded-proto": "javascript"},
        {"x-http-method-override": "DELETE"},
        {"accept-encoding": "gzip, " * 500},
    ):
        sent = {key.encode(): value.encode("latin-1") for key, value in headers.items()}
        for path in (f"/v1/videos/{name}/content", f"/v1/videos/{name}/events", "/health"):
            assert client.get(path, headers=sent).status_code < 500, (path, headers)
    assert client.get(f"/v1/videos/{name}").json()["status"] == "completed"
    assert refused(client.put(f"/v1/videos/{name}"), 405)


def test_large_headers_are_refused(gray: Gray) -> None:
    client, _ = gray
    refused(client.get("/health", headers={"x-long": "a" * 40_000}), 431)


def test_idempotency_keys(gray: Gray) -> None:
    client, _ = gray
    body = {"prompt": "a", "num_frames": 1}
    for key in ("../../x", "a" * 255, "\xe9"):
        headers = {b"Idempotency-Key": key.encode("latin-1")}
        names = {client.post("/v1/videos", json=body, headers=headers).json()["id"] for _ in "12"}
        assert len(names) == 1
    for key in ("", "a" * 256):
        refused(client.post("/v1/videos", json=body, headers={"Idempotency-Key": key}))


def test_oversized_names_and_values_are_refused_briefly(gray: Gray) -> None:
    client, _ = gray
    keys, long = {f"k{n}": 1 for n in range(5000)}, "x" * 20_000
    for body, param in (
        ({"prompt": "a", **keys}, None),
        ({"prompt": "a", "prompt_template": keys}, "prompt_template"),
        ({"prompt": "a", "prompt_template": {"template": "{}" + long}}, "prompt_template"),
        ({"prompt": "a", "sigmas": ["x"] * 5000}, "sigmas"),
        ({"prompt": "a", "\ud800": 1}, "?"),
    ):  # fmt: skip
        answer = client.post("/v1/videos", content=json.dumps(body))
        assert refused(answer)["param"] == param
        assert len(answer.content) < 2000


def test_videos_can_be_deleted_while_paging(gray: Gray) -> None:
    client, _ = gray
    names = []
    for _ in range(5):
        answer = client.post("/v1/videos", json={"prompt": "a", "num_frames": 1})
        names.append(answer.json()["id"])
        ended(client, names[-1])
    seen: list[str] = []
    query = "limit=2&order=asc"
    while page := client.get(f"/v1/videos?{query}").json()["data"]:
        for video in page:
            assert client.delete(f"/v1/videos/{video['id']}").status_code == 200
            seen.append(video["id"])
        query = f"limit=2&order=asc&after={seen[-1]}"
    assert seen == names


def test_jobs_without_a_layout_have_no_estimate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with gray_server(monkeypatch, tmp_path) as (client, _):
        done = client.post("/v1/videos", json={"prompt": "a", "num_frames": 1}).json()["id"]
        ended(client, done)
        GrayRanks.hold = True
        name = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    other = EngineConfig(model="demo", devices=2, parallel=ParallelConfig(cfg_degree=2))
    service = VideoService(other, ServeConfig(data_dir=tmp_path))
    try:
        job = service.store.find(name)
        assert job is not None
        assert objects(service).video(job)["estimated_seconds"] is None
        assert service.store.find(done) is not None
    finally:
        service.close()


def test_unknown_routes_and_methods(gray: Gray) -> None:
    client, _ = gray
    for method, path, status in (
        ("GET", "/v1/anything", 404),
        ("POST", "/v1/chat/completions", 404),
        ("PUT", "/v1/videos", 405),
        ("GET", "/v1/videos/", 404),
        ("POST", "/health", 405),
    ):
        refused(client.request(method, path), status)
    assert client.head("/health").status_code == 200


def test_invalid_ranges_are_ignored(gray: Gray) -> None:
    client, _ = gray
    name = client.post("/v1/videos", json={"prompt": "a", "num_frames": 1}).json()["id"]
    ended(client, name)
    for odd in ("bytes=a-b", "bytes=5-2", "lines=0-1", "bytes=", "bytes=--1"):
        answer = client.get(f"/v1/videos/{name}/content", headers={"range": odd})
        assert answer.status_code == 200, odd
