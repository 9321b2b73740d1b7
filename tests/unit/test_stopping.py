"""Ranks, videos and commands stop within a time limit, however long a step takes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longtake.cli.interrupts import Interrupted
from longtake.configs.engine import EngineConfig
from longtake.engine.job import Job, JobRun
from longtake.engine.launch import local_processes
from longtake.engine.launch.local_processes import LocalProcesses
from longtake.engine.launch.local_rendezvous import listen_locally
from longtake.engine.launch.protocol.engine_side import EngineSide
from longtake.engine.media.sinks import NullSink
from longtake.errors import EngineError, Stopped
from longtake.parallel import ParallelDims
from longtake.serve.page.views import Views
from tests.rendering import request
from tests.standin import GrayRanks, gray_server, objects
from tests.until import until


class EndlessStep:
    """Processes of ranks whose step never ends."""

    def __init__(self) -> None:
        self.killed_at = 0.0

    def running(self) -> list[int]:
        return [0]

    def suspended(self) -> list[int]:
        return []

    def kill(self) -> None:
        self.killed_at = time.monotonic()


def ranks_in_endless_step(stop_timeout_s: float) -> tuple[LocalProcesses, EndlessStep]:
    config, processes = EngineConfig(stop_timeout_s=stop_timeout_s), EndlessStep()
    launcher = LocalProcesses(config, "cpu")
    launcher._ranks = EngineSide(listen_locally(), config, "cpu")
    launcher._processes = processes  # type: ignore[assignment]
    return launcher, processes


JOB = Job.of(request(), ParallelDims())


def test_ranks_that_do_not_stop_in_time_are_killed(caplog: pytest.LogCaptureFixture) -> None:
    launcher, processes = ranks_in_endless_step(stop_timeout_s=0.5)
    started_at = time.monotonic()
    with pytest.raises(Stopped, match="stop requested"):
        launcher.render(JobRun(JOB, NullSink(), stop_requested=lambda: True))
    assert launcher._ranks._store.check(["stop/1"])  # the ranks were asked to stop first
    assert 0.5 < processes.killed_at - started_at < 5
    assert not launcher.alive
    (warning,) = caplog.messages
    assert warning == "the ranks were ended in the middle of a step: they did not stop within 0.5 s"


def test_a_second_ctrl_c_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launcher, processes = ranks_in_endless_step(stop_timeout_s=1000)
    first = Interrupted(signal.SIGINT)

    def read(timeout_s: float) -> None:
        first.again = launcher._ranks._store.check(["stop/1"])
        if not first.again:
            raise first

    monkeypatch.setattr(launcher._ranks._output, "read", read)
    with pytest.raises(Interrupted):
        launcher.render(JobRun(JOB, NullSink()))
    assert processes.killed_at
    assert caplog.messages == []


def test_ranks_that_load_are_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = EndlessStep()
    monkeypatch.setattr(local_processes, "RankProcesses", lambda *arguments: processes)
    launcher = LocalProcesses(EngineConfig(), "cpu")
    with pytest.raises(Stopped):
        launcher.start(lambda progress: None, lambda: True)
    assert processes.killed_at


def test_a_cancelled_video_has_no_estimate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor does it count in the estimates of the videos queued after it."""
    with gray_server(monkeypatch, tmp_path) as (client, service):
        GrayRanks.hold = GrayRanks.deaf = True
        first, second = (
            client.post("/v1/videos", json={"prompt": "a"}).json()["id"] for _ in range(2)
        )
        # Known after two steps, some time after the video is in progress.
        until(lambda: client.get(f"/v1/videos/{first}").json()["estimated_seconds"] is not None)
        service.cancel(service.store.job(first))
        shown = client.get(f"/v1/videos/{first}").json()["estimated_seconds"]
        cancelling, waiting = (service.store.job(name) for name in (first, second))
        views = Views(service, objects(service))
        words = views.status(cancelling), views.status(waiting)
        GrayRanks.deaf = False  # else they would outlive the server
        assert shown is None
        assert "Ends after this step, in 30 s at most" in words[0]
        assert "time left" not in words[0]
        assert "Waiting for the ranks" in words[1]
        assert "time left not known yet" in words[1]
        until(lambda: client.get(f"/v1/videos/{first}").json()["status"] == "failed")


def test_a_final_state_is_written_once_the_disk_has_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Until then, clients, queue and metrics agree that it runs."""
    with gray_server(monkeypatch, tmp_path) as (client, service):
        real, full = service.store.claims.finish, True

        def finish(*arguments: Any) -> None:
            if full:
                raise EngineError("jobs.sqlite cannot be used (database or disk is full)")
            real(*arguments)

        monkeypatch.setattr(service.store.claims, "finish", finish)
        name = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
        until(lambda: "disk is full" in service.progress.last_note)
        assert client.get(f"/v1/videos/{name}").json()["status"] == "in_progress"
        assert "longtake_videos_running 1.0" in client.get("/metrics").text
        full = False
        until(lambda: client.get(f"/v1/videos/{name}").json()["status"] == "completed")
        metrics = client.get("/metrics").text
        assert "longtake_videos_running 0.0" in metrics
        assert 'longtake_videos_total{state="done"} 1.0' in metrics
        assert client.delete(f"/v1/videos/{name}").json()["deleted"]


COMMAND = """
import hashlib, os, sys, threading, time
from longtake.cli import interrupts
interrupts._MARGIN_S = 0.2
taken = interrupts.Interrupts().__enter__()
if sys.argv[1] != "importing":
    taken.begin(lambda: 0.2)
try:
    threading.Timer(0.5, lambda: print("begun", flush=True)).start()
    if sys.argv[1] == "computing":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # runs no signal handlers
    time.sleep(60)
except KeyboardInterrupt:
    try:
        time.sleep(60 if sys.argv[1] == "closing" else 0.1)
    finally:
        taken.finished = True
        print("longtake: stopped; by itself", file=sys.stderr)
        time.sleep(0.1)
        os._exit(130)
"""


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("importing", "nothing was written"),
        ("sleeping", "by itself"),
        ("computing", "it did not end in time, and was killed"),
        ("closing", "it did not end in time, and was killed"),
    ],
)
def test_many_signals_end_a_command_with_one_line(at: str, message: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, at],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for number in 17 * (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
            time.sleep(0.002)
        _, err = process.communicate(timeout=50)
    assert (process.returncode, err) == (130, f"longtake: stopped; {message}\n")
