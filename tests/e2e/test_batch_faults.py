"""Batches whose processes die, hang, or find the disk full: everything is rendered all the same."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest

from longtake import VideoEngine, VideoRequest
from tests import kills
from tests.kills import K, Kill, Running, nothing_left_in_memory


def test_a_dozen_kills(model: str, tmp_path: Path) -> None:
    """Of each rank, of the supervisor and of all at once, at random moments of each phase."""
    draw = random.Random(11)
    some = [Kill.drawn(draw, number) for number in range(12)]
    _, arguments = kills.shots(tmp_path, 6)
    arguments += ["--model", model]
    whole = kills.rendered(tmp_path, arguments)
    with (tmp_path / "errors").open("w") as errors, nothing_left_in_memory():
        ledger = kills.run_killed(arguments, tmp_path, some, errors)
    kills.check(tmp_path, ledger, whole)
    assert ledger.kills == dict.fromkeys(kills.VICTIMS, 3)
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert any(0 < steps <= K for steps in ledger.redone)


@pytest.fixture
def errors(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "errors").open("w") as file:
        yield file


def ended(running: Running) -> list[dict[str, Any]]:
    """All events until it ends, which it does by itself, well."""
    events = []
    while (event := running.next()) is not None:
        events.append(event)
    assert running.process.wait(timeout=30) == 0
    return events


def test_a_suspended_rank_is_found_and_replaced(model: str, tmp_path: Path, errors: TextIO) -> None:
    _, arguments = kills.shots(tmp_path, 1)
    running = Running([*arguments, "--model", model, "--rank-loss-timeout-s", "5"], errors)
    while (event := running.next()) is not None:
        if event["event"] == "progress" and event.get("done") == 13:
            break
    ranks = running.ranks()
    ranks[1].suspend()
    suspended = time.monotonic()
    while (event := running.next()) is not None and event["event"] != "state":
        pass
    assert event is not None
    assert event["text"].startswith("rank 1 was suspended (SIGSTOP, or a debugger) for ")
    assert time.monotonic() - suspended < 5
    events = ended(running)
    resumed = [each["text"] for each in events if each["event"] == "note"]
    assert resumed == ["shot-0: resumes after step 10 of 24"]
    assert not kills.still_running(list(ranks.values()), timeout=5)


DIES_AT_START = """
import os
if os.environ.get("LONGTAKE_DEVICE") == "1":
    os.kill(os.getpid(), 9)
"""


def test_four_ranks_of_which_one_dies_at_every_start(
    model: str, tmp_path: Path, errors: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DIES_AT_START)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, arguments = kills.shots(tmp_path, 1)
    arguments[arguments.index("--devices") + 1] = "4"
    running = Running([*arguments, "--model", model, "--ulysses-degree", "4"], errors)
    notes = [each["text"] for each in ended(running) if each["event"] == "note"]
    assert sum("rank 1 was killed by SIGKILL" in note for note in notes) == 2
    assert "device 1 is excluded: it failed repeatedly; 3 are left" in notes
    told = json.loads((tmp_path / "out" / "shot-0.npy.json").read_text())
    assert told["engine"]["device_ids"] == [0, 2, 3]
    assert told["layout"]["taken"] == "1x1x3"
    expected = VideoEngine.from_pretrained(model).generate(
        VideoRequest(prompt="a cat walks", seed=0, num_inference_steps=kills.STEPS)
    )
    frames = np.load(tmp_path / "out" / "shot-0.npy")
    np.testing.assert_allclose(frames, expected.frames, rtol=0, atol=1e-4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of a few MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up(model: str, small_disk: Path, tmp_path: Path) -> None:
    """While a snapshot, a video, and the queue are written; and what was there before stays."""
    shots, out = tmp_path / "shots.jsonl", small_disk / "out"
    rows = [
        {"id": "first", "prompt": "a", "seed": 1, "output": "first.npy", "num_frames": 5},
        {"id": "second", "prompt": "a", "seed": 2, "output": "second.npy", "num_frames": 33},
    ]
    shots.write_text(json.dumps(rows[0]) + "\n")
    arguments = [str(shots), "-o", str(out), "--model", model, "--attempts", "2"]
    arguments += ["--num-inference-steps", "4", "--snapshot-steps", "1"]
    batch = [*kills.COMMAND, *arguments]
    subprocess.run(batch, check=True, capture_output=True, timeout=100)
    first = (out / "first.npy").read_bytes()

    def run(room_bytes: int) -> tuple[int, str]:
        """Run it on a disk that has so much room."""
        free = shutil.disk_usage(small_disk).free
        filler = small_disk / "filler"
        filler.write_bytes(b"\0" * max(0, free - room_bytes))
        ran = subprocess.run(batch, capture_output=True, text=True, check=False, timeout=100)
        filler.unlink()
        assert (out / "first.npy").read_bytes() == first
        assert "Traceback" not in ran.stderr
        return ran.returncode, ran.stderr

    shots.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = run(0)  # found before anything is begun
    assert code == 2
    assert len(said.splitlines()) == 1
    assert re.search(rf"longtake: output='{out}': .* cannot be written to \(No space left", said)
    code, said = run(400_000)  # the video, of 608 KB
    assert code == 1, said
    (line,) = re.findall(r"^longtake: second failed: .*$", said, re.MULTILINE)
    assert "second.npy cannot be written: No space left on device" in line
    assert not [path for path in out.rglob("*") if ".partial" in path.name]
    # The latents are kept: what is left to do is to decode them.
    subprocess.run([*batch, "--retry-failed"], check=True, capture_output=True, timeout=100)
    told = json.loads((out / "second.npy.json").read_text())
    assert told["snapshots"]["steps_before"] == 4
    assert (out / "first.npy").read_bytes() == first
