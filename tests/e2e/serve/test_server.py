"""A server on two ranks, used by OpenAI's client and over plain HTTP."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import imageio.v3 as iio
import pytest

from longtake import VideoEngine, VideoRequest
from tests.crowd import crowd
from tests.forked_commands import ranks_of
from tests.processes import still_running
from tests.serving import Server, serving
from tests.until import until

PROMPT = "a red circle moving right on a navy background"


@pytest.fixture
def openai(server: Server) -> Iterator[Any]:
    from openai import OpenAI

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI has deprecated videos
        with OpenAI(base_url=f"{server.url}/v1", api_key="none is needed") as client:
            yield client


def test_openai_client_creates_downloads_and_deletes_a_video(
    openai: Any, server: Server, tmp_path: Path
) -> None:
    video = openai.videos.create(
        prompt=PROMPT, model="demo", seconds="2", size="64x64", extra_body={"seed": 3}
    )
    assert (video.object, video.size, video.seconds) == ("video", "64x64", "2.125")
    assert video.status in ("queued", "in_progress")
    assert video.id in [each.id for each in openai.videos.list()]
    done = openai.videos.poll(video.id, poll_interval_ms=100)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    assert done.created_at <= done.completed_at < done.expires_at
    content = openai.videos.download_content(video.id).read()
    frames = iio.imread(content, extension=".mp4", plugin="pyav")
    with VideoEngine.from_pretrained("demo", devices=2) as engine:
        rendered = engine.generate(VideoRequest(prompt=PROMPT, seed=3, num_frames=17))
    (file,) = rendered.save(tmp_path / "out.mp4")
    assert file.read_bytes() == content
    expected = rendered.frames
    assert frames.shape == expected.shape
    assert abs(frames / 255 - expected).mean() < 0.02  # through H.264
    strip = openai.videos.download_content(video.id, variant="spritesheet").read()
    assert iio.imread(strip).shape == (120, 6 * 120, 3)
    thumbnail = openai.videos.download_content(video.id, variant="thumbnail").read()
    assert iio.imread(thumbnail).shape == (120, 120, 3)
    deleted = openai.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(Exception, match="there is no video") as refused:
        openai.videos.retrieve(video.id)
    assert type(refused.value).__name__ == "NotFoundError"
    until(lambda: not list((server.folder / "videos").glob(f"{video.id}*")))


def test_openai_client_pages_through_videos(openai: Any, server: Server) -> None:
    names = [server.create(num_inference_steps=1, num_frames=1)["id"] for _ in range(5)]
    listed = [each.id for each in openai.videos.list(limit=2)]
    assert listed[:5] == names[::-1]
    page = openai.videos.list(limit=2, after=names[4])
    assert [each.id for each in page.data] == [names[3], names[2]]
    upwards = [each.id for each in openai.videos.list(order="asc", after=names[1])]
    assert upwards == names[2:]


def events(server: Server, name: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    with server.client.stream("GET", f"/v1/videos/{name}/events", timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((kind, json.loads(line.removeprefix("data: "))))
    return found


def test_each_step_is_an_event(server: Server) -> None:
    name = server.create(num_inference_steps=40)["id"]
    followed = events(server, name)
    assert followed[0][0] == "video"
    assert followed[-1][0] == "completed"
    steps = [each["done"] for kind, each in followed if each.get("phase") == "denoising"]
    assert steps == list(range(41))
    phases = dict.fromkeys(each["phase"] for kind, each in followed if kind == "progress")
    rendering = [each for each in phases if each != "waiting"]
    assert rendering == ["text", "denoising", "decoding", "writing"]
    late = events(server, name)  # a late client gets all events, too
    assert [each["done"] for _, each in late if each.get("phase") == "denoising"] == steps


def test_text_to_video_server_refuses_a_picture(server: Server) -> None:
    pictures = server.folder / "pictures"
    before = set(pictures.iterdir())
    response = server.client.post(
        "/v1/videos", data={"prompt": "a"}, files={"input_reference": ("a.png", b"no picture")}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input_reference"
    assert set(pictures.iterdir()) == before


def test_range_requests(server: Server) -> None:
    name = server.create(num_inference_steps=2)["id"]
    assert server.client.get(f"/v1/videos/{name}/content").status_code in (404, 200)
    server.wait(name)
    url = f"/v1/videos/{name}/content"
    whole = server.client.get(url)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    part = server.client.get(url, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    end = server.client.get(url, headers={"range": "bytes=-5"})
    assert end.content == whole.content[-5:]
    beyond = server.client.get(url, headers={"range": f"bytes={len(whole.content)}-"})
    assert beyond.status_code == 416
    head = server.client.head(url)
    assert int(head.headers["content-length"]) == len(whole.content)


def test_idempotency_key_creates_one_video(server: Server) -> None:
    def send(prompt: str) -> httpx.Response:
        return httpx.post(
            f"{server.url}/v1/videos",
            json={"prompt": prompt, "num_inference_steps": 1},
            headers={"Idempotency-Key": "an order"},
            timeout=30,
        )

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: send("a"), range(16)))
    assert {each.status_code for each in responses} == {200}
    assert len({each.json()["id"] for each in responses}) == 1
    other = send("b")
    assert other.status_code == 400
    assert other.json()["error"]["param"] == "Idempotency-Key"


def test_deleted_video_stops_between_two_steps(server: Server) -> None:
    name = server.create(num_inference_steps=2000)["id"]
    after = server.create(num_inference_steps=1)["id"]
    until(lambda: server.video(name)["steps_done"] > 2)
    start = time.monotonic()
    assert server.client.delete(f"/v1/videos/{name}").status_code == 200
    assert server.client.get(f"/v1/videos/{name}").status_code == 404
    assert server.wait(after)["status"] == "completed"
    assert time.monotonic() - start < 15


def test_hanging_step_does_not_block_the_queue(server: Server) -> None:
    """Its ranks are killed; new ones render the next video."""
    restarts = [
        line for line in server.client.get("/metrics").text.splitlines() if "restarts" in line
    ]
    name = server.create(num_inference_steps=2000)["id"]
    after = server.create(num_inference_steps=1)["id"]
    until(lambda: server.video(name)["steps_done"] > 2)
    ranks = ranks_of(server.process.pid)
    ranks[1].suspend()
    server.client.delete(f"/v1/videos/{name}")
    assert not still_running(ranks, timeout=3 + 1 + 8)
    assert server.wait(after)["status"] == "completed"
    text = server.client.get("/metrics").text
    assert [line for line in text.splitlines() if "restarts" in line] == restarts


def test_concurrent_invalid_requests_do_not_affect_the_next(server: Server) -> None:
    bad = [{"prompt": "a", "size": "65x64"}, {"prompt": "a", "num_frames": 6}]

    def send(body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/videos", json=body, timeout=30)

    with ThreadPoolExecutor(2) as pool:
        responses = list(pool.map(send, bad))
    assert [each.status_code for each in responses] == [400, 400]
    assert [each.json()["error"]["param"] for each in responses] == ["size", "num_frames"]
    assert server.wait(server.create(num_inference_steps=1)["id"])["status"] == "completed"


def test_crowd_of_clients(server: Server) -> None:
    """50 clients with one request each; ``make soak`` sends more, until the queue is full."""
    outcomes = crowd(server, requests_per_client=1)
    assert {"completed", "cancelled"} <= outcomes.keys() <= {"429", "completed", "cancelled"}
    assert outcomes["completed"] <= 17  # every third client waits for its video
    assert outcomes["cancelled"] <= 33


def test_metrics(server: Server) -> None:
    text = server.client.get("/metrics").text
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    assert values['longtake_http_requests_total{method="GET",route="/health",status="200"}'] > 1
    assert values["longtake_video_running_seconds_count"] > 3
    assert values["longtake_step_seconds_sum"] > 0
    assert values['longtake_stage_seconds_total{stage="decoding"}'] > 0
    assert values['longtake_communicated_bytes_total{stage="denoising"}'] > 0
    assert values["longtake_tokens_per_second"] > 0
    assert values['longtake_peak_memory_bytes{device="cpu",rank="1"}'] > 1e8
    assert values["longtake_rank_restarts_total"] == 0
    assert values["longtake_ready"] == 1


def test_dead_rank_is_replaced_and_counted(server: Server) -> None:
    name = server.create(num_inference_steps=60)["id"]
    until(lambda: server.video(name)["steps_done"] > 5)
    ranks = ranks_of(server.process.pid)
    ranks[-1].kill()
    assert server.wait(name)["status"] == "completed"
    assert "longtake_rank_restarts_total 1.0" in server.client.get("/metrics").text


def test_restart_after_sigkill_finishes_all_videos(tmp_path: Path) -> None:
    """The running and the queued video keep their ids."""
    arguments = ["--devices", "2", "--no-page", "--snapshot-steps", "10"]
    with serving(tmp_path, *arguments) as first:
        name = first.create(num_inference_steps=120, seed=1)["id"]
        waiting = first.create(num_inference_steps=2, seed=1)["id"]
        until(lambda: first.video(name)["steps_done"] > 30, timeout=60)
        first.kill()
    with serving(tmp_path, *arguments, ready=False) as second:
        assert second.video(name)["status"] in ("queued", "in_progress")
        video = second.wait(name)
        assert video["status"] == "completed"
        metadata = json.loads((second.folder / "videos" / f"{name}.mp4.json").read_text())
        assert metadata["snapshots"]["steps_before"] >= 30
        assert second.wait(waiting)["status"] == "completed"
        assert "longtake_recoveries_total 1.0" in second.client.get("/metrics").text
        content = second.client.get(f"/v1/videos/{waiting}/content").content
        assert iio.imread(content, extension=".mp4", plugin="pyav").shape == (17, 64, 64, 3)
