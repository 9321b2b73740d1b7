"""A batch whose queue is lost while it runs keeps its output, and renders each shot once."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from longtake.configs.commands.batch import BatchConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.paths import metadata_path
from longtake.errors import EngineError, RequestError
from longtake.serve.batch import batch as batch_module
from longtake.serve.batch.batch import Batch
from longtake.serve.queue import queue_watch
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.runner.watcher import BatchWatcher
from tests.standin import GrayRanks
from tests.until import until


class Noted(BatchWatcher):
    """Records notifications."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.began: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def state(self, job: str, state: str, text: str) -> None:
        if state == "running":
            self.began.append(job)


@pytest.mark.parametrize("damage", ["rm jobs.sqlite*", "echo hello > jobs.sqlite"])
def test_a_batch_survives_the_loss_of_its_queue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    monkeypatch.setattr(batch_module, "Supervisor", GrayRanks)
    monkeypatch.setattr(queue_watch, "_PERIOD_S", 0.05)
    shots, folder = tmp_path / "shots.jsonl", tmp_path / "out"
    rows = [{"id": name, "prompt": "a", "num_frames": 1} for name in "abc"]  # seeds are drawn
    shots.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def run(watcher: Noted) -> list[JobRecord]:
        one = Batch(shots, folder, EngineConfig(model="demo"), BatchConfig(), SnapshotConfig(), {})
        return one.run(one.check(), watcher)

    GrayRanks.hold, GrayRanks.fails = True, None
    first = Noted()
    errors: list[BaseException] = []
    thread = threading.Thread(target=caught(lambda: run(first), errors))
    thread.start()
    until(lambda: first.began == ["a"])
    until(lambda: (folder / ".longtake" / "jobs.sqlite-wal").exists())
    subprocess.run(["sh", "-c", damage], cwd=folder / ".longtake", check=True)
    until(lambda: any("jobs.sqlite is " in line for line in first.lines))
    GrayRanks.hold = False
    thread.join(60)
    (error,) = errors
    assert isinstance(error, EngineError)
    assert "jobs.sqlite is " in str(error)
    assert "\n" not in str(error)
    assert first.began == ["a"]
    rendered = (folder / "a.mp4").stat().st_mtime_ns
    if "echo" in damage:
        with pytest.raises(RequestError, match="is damaged .* move it away and start again"):
            run(Noted())
        (folder / ".longtake" / "jobs.sqlite").rename(tmp_path / "away")
    jobs = run(Noted())
    assert [job.state for job in jobs] == ["done"] * 3
    assert (folder / "a.mp4").stat().st_mtime_ns == rendered
    told = json.loads(metadata_path(folder / "a.mp4").read_text())
    assert jobs[0].request.seed == told["request"]["seed"]  # that the report names


def caught(act: Callable[[], object], errors: list[BaseException]) -> Callable[[], None]:
    def run() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    return run
