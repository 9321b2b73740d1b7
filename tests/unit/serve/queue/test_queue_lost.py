"""A queue's file that is deleted, moved, truncated, damaged or locked while it is in use."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from longtake.engine.media.paths import metadata_path
from longtake.errors import RequestError
from longtake.serve.queue import queue_watch
from longtake.serve.queue.job_database import QueueBusyError, QueueError, QueueLostError
from longtake.serve.queue.job_store import JobStore
from longtake.serve.queue.submissions import Submissions
from longtake.serve.service import service as service_module
from tests.standin import GrayRanks, gray_server
from tests.unit.serve.queue.test_submissions import NOW, added
from tests.until import until

PAGE = 4096
WAYS = {  # what a shell does in the folder of the file, what is said, and at the next start
    "deleted": ("rm jobs.sqlite", "jobs.sqlite is gone", ""),
    "all of it deleted": ("rm jobs.sqlite*", "jobs.sqlite is gone", ""),
    "its log deleted": ("rm jobs.sqlite-wal", "jobs.sqlite-wal is gone", ""),
    "its index deleted": ("rm jobs.sqlite-shm", "jobs.sqlite-shm is gone", ""),
    "put back": ("cp jobs.sqlite x; mv x jobs.sqlite", "was replaced while it was in use", ""),
    "a folder instead": ("rm jobs.sqlite; mkdir jobs.sqlite", "was replaced", "unable to open"),
    "the folder moved": ("mv ../.longtake ../x", "jobs.sqlite is gone", ""),
    "emptied": (": > jobs.sqlite", "damaged (it is empty)", "damaged (it is empty)"),
    "cut short": (f"truncate -s {2 * PAGE} jobs.sqlite", "is damaged", "is damaged"),
    "garbage at its head": (
        "head -c 200 /dev/urandom | dd of=jobs.sqlite conv=notrunc",
        "damaged (file is not a database)",
        "damaged (file is not a database)",
    ),
    "garbage within": (
        f"head -c {PAGE} /dev/urandom | dd of=jobs.sqlite bs={PAGE} seek=2 conv=notrunc",
        "is damaged (",
        "is damaged (",
    ),
    "zeros within": (
        f"dd if=/dev/zero of=jobs.sqlite bs={PAGE} seek=1 count=1 conv=notrunc",
        "is damaged (",
        "is damaged (",
    ),
    "text": ("echo hello > jobs.sqlite", "is damaged (", "is damaged ("),
}


def shell(command: str, folder: Path) -> None:
    """As another process: SQLite's locks end where their own process closes the file."""
    subprocess.run(["sh", "-c", command], cwd=folder, check=True, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_written_to_a_lost_queue(tmp_path: Path, way: str) -> None:
    command, said, at_start = WAYS[way]
    with Submissions(tmp_path, create=True) as store:
        for name in "abc":
            added(store, name)
        store.check_usable()
        shell(command, tmp_path / ".longtake")
        for act in (
            lambda: added(store, "d"),
            lambda: store.delete("a", NOW),
            store.check_usable,
            store.jobs,
            lambda: store.find("a"),
            lambda: store.claims.take("engine", NOW),
        ):
            with pytest.raises(QueueLostError) as error:
                act()
            assert said in str(error.value)
            assert "\n" not in str(error.value)
    if at_start:
        with pytest.raises((RequestError, QueueError)) as refusal:
            Submissions(tmp_path, create=True)
        assert at_start in str(refusal.value)
        shell("rm -r jobs.sqlite", tmp_path / ".longtake")  # as is advised
    with Submissions(tmp_path, create=True) as store:  # whatever was left beside it
        assert added(store, "e", source="serve other")[1]
        assert store.job("e").state == "queued"


def test_a_file_that_is_moved_back_is_usable_again(tmp_path: Path) -> None:
    folder = tmp_path / ".longtake"
    with Submissions(tmp_path, create=True) as store:
        added(store, "a")
        store.check_usable()
        for away, back in (
            ("mv jobs.sqlite x", "mv x jobs.sqlite"),
            ("mv jobs.sqlite-wal x", "mv x jobs.sqlite-wal"),
        ):
            shell(away, folder)
            with pytest.raises(QueueLostError, match="is gone"):
                store.jobs()
            shell(back, folder)
            store.check_usable()
            assert store.job("a").id == "a"
        content = (folder / "jobs.sqlite").stat().st_size
        shell(f"cp jobs.sqlite x; truncate -s {PAGE} jobs.sqlite", folder)
        with pytest.raises(QueueLostError, match="damaged"):
            added(store, "b")
        shell("cat x > jobs.sqlite", folder)
        store.check_usable()
        assert (folder / "jobs.sqlite").stat().st_size == content
        assert added(store, "b")[1]


def test_invalid_rows_are_damage(tmp_path: Path) -> None:
    with Submissions(tmp_path, create=True) as store:
        added(store, "a")
        for change in ("request='{}'", "request='['", "seconds='x'", "owner='1'"):
            store._database._connection.execute(f"UPDATE jobs SET {change}")
            store._database._examined = None  # as if another process had
            with pytest.raises(QueueLostError, match="is damaged .a row is not a job"):
                store.check_usable()
            with pytest.raises(QueueLostError, match="is damaged .a row is not a job"):
                store.jobs()


HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
database.execute("UPDATE jobs SET position = position + 1")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def write_lock_held(folder: Path) -> Iterator[None]:
    """By another process, in the middle of what it writes."""
    path = folder / ".longtake" / "jobs.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.kill()


def test_readers_do_not_wait_for_writers(tmp_path: Path) -> None:
    with Submissions(tmp_path, create=True, busy_s=0.5) as store:
        added(store, "a")
        with write_lock_held(tmp_path):
            begun = time.monotonic()
            with pytest.raises(QueueBusyError, match=r"cannot be written now \(database is locked"):
                added(store, "b")
            assert time.monotonic() - begun < 5
            store.check_usable()  # it says nothing of the file
            begun = time.monotonic()
            for _ in range(100):
                assert store.find("a")
            with JobStore(tmp_path, read_only=True) as reader:  # longtake jobs list
                assert [each.id for each in reader.jobs()] == ["a"]
            assert time.monotonic() - begun < 5
        assert added(store, "b")[1]


def refused(answer: Any) -> str:
    """The error that a client receives while the queue is unusable."""
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert error["type"] == "server_error"
    assert "/" not in error["message"]
    assert "\n" not in error["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 600
    return str(error["message"])


def begun(client: TestClient, key: str) -> str:
    """The id of a video that is being rendered."""
    GrayRanks.hold = True
    name = str(created(client, key).json()["id"])
    until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "in_progress")
    return name


def created(client: TestClient, key: str) -> Any:
    body = {"prompt": "a", "num_frames": 1, "seed": 7, "num_videos": 2}
    return client.post("/v1/videos", json=body, headers={"Idempotency-Key": key})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(service_module, "_CLEAN_UP_EVERY_S", 0.1)
    monkeypatch.setattr(queue_watch, "_PERIOD_S", 0.05)
    monkeypatch.setattr(service_module, "_LOCK_TIMEOUT_S", 1.0)
    return lambda: gray_server(monkeypatch, tmp_path)


def test_a_queue_that_is_deleted_while_it_is_served(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "longtake")
    with server() as (client, _):
        name = begun(client, "x")
        until(lambda: client.get("/ready").status_code == 200)
        shell("rm jobs.sqlite*", tmp_path / ".longtake")
        for answer in (
            created(client, "y"),
            client.get("/v1/videos"),
            client.get(f"/v1/videos/{name}"),
            client.get(f"/v1/videos/{name}/content"),
            client.get(f"/v1/videos/{name}/events"),
            client.delete(f"/v1/videos/{name}"),
        ):
            assert refused(answer).startswith("the queue's file is gone")
            assert answer.json()["error"]["code"] == "queue_unavailable"
        until(lambda: client.get("/ready").status_code == 503)
        assert refused(client.get("/ready")).startswith("the queue's file is gone")
        assert client.get("/health").status_code == 200
        metrics = client.get("/metrics").text
        assert "longtake_queue_usable 0.0" in metrics
        assert "longtake_ready 0.0" in metrics
        GrayRanks.hold = False  # what was begun is finished
        until(lambda: metadata_path(tmp_path / "videos" / f"{name}.mp4").is_file())
        time.sleep(0.5)
        assert not (tmp_path / ".longtake" / "jobs.sqlite").exists()
        lines = [each for each in caplog.messages if "jobs.sqlite" in each]
        assert len(lines) == 1
        assert "jobs.sqlite is gone: move it back, or start again" in lines[0]
    caplog.clear()
    with server() as (client, service):
        assert "1 finished video missing in the queue, restored from metadata" in caplog.messages
        (video,) = client.get("/v1/videos").json()["data"]
        assert (video["id"], video["status"], video["model"]) == (name, "completed", "demo")
        assert (video["prompt"], video["seed"], video["num_videos"]) == ("a", 7, 2)
        assert video["created_at"] <= video["started_at"] <= video["completed_at"]
        assert video["expires_at"] == video["completed_at"] + service.settings.keep_s
        for index in range(2):
            content = client.get(f"/v1/videos/{name}/content?index={index}")
            assert content.status_code == 200
        assert created(client, "x").json()["id"] == name
        assert client.delete(f"/v1/videos/{name}").status_code == 200
        service.retention.clean_up(0)
        assert not list((tmp_path / "videos").iterdir())


def test_a_queue_that_is_moved_away_and_back(server: Any, tmp_path: Path) -> None:
    folder = tmp_path / ".longtake"
    with server() as (client, _):
        name = begun(client, "x")
        shell("mv jobs.sqlite x", folder)
        until(lambda: client.get("/ready").status_code == 503)
        GrayRanks.hold = False
        until(lambda: metadata_path(tmp_path / "videos" / f"{name}.mp4").is_file())
        refused(client.get(f"/v1/videos/{name}"))
        shell("mv x jobs.sqlite", folder)
        until(lambda: client.get("/ready").status_code == 200)
        until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "completed")
        other = created(client, "y").json()["id"]
        until(lambda: client.get(f"/v1/videos/{other}").json()["status"] == "completed")


def test_a_write_lock_held_by_another_process(server: Any, tmp_path: Path) -> None:
    with server() as (client, _):
        name = begun(client, "x")
        with write_lock_held(tmp_path):
            begun_at = time.monotonic()
            for path in ("", f"/{name}", "?limit=5"):
                assert client.get(f"/v1/videos{path}").status_code == 200
            for path in ("/health", "/ready", "/metrics"):
                assert client.get(path).status_code == 200
            assert time.monotonic() - begun_at < 2
            assert refused(created(client, "y")).startswith("another process is writing")
            assert time.monotonic() - begun_at < 10
            GrayRanks.hold = False
            time.sleep(0.5)
        until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "completed")


def changed(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field:
            content[part][field] = value
        else:
            content[part] = value
    path.write_text(json.dumps(content))


def test_finished_videos_are_restored_from_their_metadata(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other files in the folder are left alone."""
    with server() as (client, _):
        name = str(created(client, "x").json()["id"])
        until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "completed")
    videos = tmp_path / "videos"
    metadata = metadata_path(videos / f"{name}.mp4").read_text()
    deep = "[" * 100_000 + "]" * 100_000
    bad: list[Any] = [
        "",
        "{",
        "[]",
        "null",
        deep,
        f'{{"batch": {deep}}}',
        " " * (17 * 2**20),
        b"\xff\xfe",
        {"batch": "x"},
        {"batch__id": "video_" + "f" * 32},
        {"batch__queued_at": 1e400},
        {"created": "yesterday"},
        {"created": "0001-01-01T00:00:00+00:00"},
        {"request__num_videos": 3},
        {"request__output_type": "latents"},
        {"request__height": 10**400},
        {"request": {}},
        {"seconds__denoising": -1},
        {"engine": None},
    ]
    for number, change in enumerate(bad):
        other = f"video_{number:032x}"
        for part in range(2):
            (videos / f"{other}-{part}.mp4").write_bytes(b"x")
        path = metadata_path(videos / f"{other}.mp4")
        path.write_text(metadata.replace(name, other))
        if isinstance(change, dict):
            changed(path, **change)
        elif isinstance(change, bytes):
            path.write_bytes(change)
        else:
            path.write_text(change)
    link = videos / f"video_{99:032x}.mp4"
    link.symlink_to("/etc/passwd")
    metadata_path(link).write_text(metadata.replace(name, link.stem))
    (videos / f"video_{98:032x}.mp4").mkdir()
    (videos / "other.mp4").write_bytes(b"x")
    metadata_path(videos / "other.mp4").write_text(metadata)
    there = sorted(videos.iterdir())
    shell("rm jobs.sqlite", tmp_path / ".longtake")
    caplog.clear()
    with server() as (client, _):
        assert [each["id"] for each in client.get("/v1/videos").json()["data"]] == [name]
        lines = [each for each in caplog.messages if "left alone in" in each]
        assert len(lines) == 1
        assert f"and {len(bad) + 2 - 3} more" in lines[0]
    assert sorted(videos.iterdir()) == there
