"""Server-sent events on the wire."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.standin import gray_server
from tests.until import until


def test_events_of_a_finished_video(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = {"prompt": "a", "num_frames": 1, "num_inference_steps": 2}
    with gray_server(monkeypatch, tmp_path) as (client, _):
        name = client.post("/v1/videos", json=body).json()["id"]
        until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "completed")
        answer = client.get(f"/v1/videos/{name}/events")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "no-store" in answer.headers["cache-control"]
        assert answer.headers["x-accel-buffering"] == "no"
        first, *progress, last = answer.text.removesuffix("\n\n").split("\n\n")
        video = json.dumps(client.get(f"/v1/videos/{name}").json())
        assert first == f"event: video\ndata: {video}"
        assert last == f"event: completed\ndata: {video}"
        ids = [each.rpartition("\nid: ")[2] for each in progress]
        assert ids == [f"1-{number}" for number in range(len(ids))]
        assert all(each.startswith("event: progress\ndata: {") for each in progress)
        headers = {"last-event-id": ids[2]}
        resumed = client.get(f"/v1/videos/{name}/events", headers=headers).text
        assert resumed.count("event: progress") == len(ids) - 3
        other = client.get(f"/v1/videos/{name}/events", headers={"last-event-id": "2-1"}).text
        assert other.count("event: progress") == len(ids)
        assert client.get("/v1/videos/none/events").status_code == 404
