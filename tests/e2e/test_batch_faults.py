"""Batches whose processes die or hang, or whose disk is full."""

from __future__ import annotations

import json
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
from longtake.cli import main as cli
from tests import kills
from tests.forked_ranks import DEAD_DEVICE
from tests.kills import SMALL_SAMPLE, BatchProcess, batch_arguments, no_shared_memory_left
from tests.processes import still_running


def test_killed_processes_lose_no_shot(model: str, tmp_path: Path) -> None:
    """Each phase and each victim; ``make soak`` repeats it at random moments."""
    arguments = batch_arguments(tmp_path, model, 2)
    expected = kills.render_uninterrupted(tmp_path, arguments)
    with (tmp_path / "errors").open("w") as errors, no_shared_memory_left():
        observations = kills.run_with_kills(arguments, tmp_path, SMALL_SAMPLE, errors)
    kills.check(tmp_path, observations, expected)
    assert {kill.phase for kill in SMALL_SAMPLE} == set(kills.PHASES)
    assert {kill.victim for kill in SMALL_SAMPLE} == set(kills.VICTIMS)
    assert any(10 <= step < kills.STEPS for _, step in observations.resumed)


@pytest.fixture
def errors(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "errors").open("w") as file:
        yield file


def test_suspended_rank_is_replaced(model: str, tmp_path: Path, errors: TextIO) -> None:
    arguments = batch_arguments(tmp_path, model, 1)
    batch = BatchProcess([*arguments, "--rank-loss-timeout-s", "5"], errors)
    while (event := batch.next_event()) is not None:
        if event["event"] == "progress" and event.get("done") == 13:
            break
    steps_done, ranks = 13, batch.ranks()
    ranks[1].suspend()
    suspended_at = time.monotonic()
    while (event := batch.next_event()) is not None and event["event"] != "state":
        steps_done = event.get("done", steps_done)
    assert event is not None
    assert event["text"].startswith("rank 1 was suspended (SIGSTOP, or a debugger) for ")
    assert time.monotonic() - suspended_at < 5
    (note,) = [each["text"] for each in batch.remaining_events() if each["event"] == "note"]
    # The snapshot of the last reported step may have been written or not.
    possible = {kills.last_snapshot(steps_done), kills.last_snapshot(steps_done + 1)}
    assert note in {f"shot-0: resumes after step {step} of 24" for step in possible}
    assert not still_running(list(ranks.values()), timeout=5)


def test_device_that_fails_at_every_start_is_left_out(
    model: str, tmp_path: Path, errors: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEAD_DEVICE, "1")
    arguments = batch_arguments(tmp_path, model, 1, devices=4)
    batch = BatchProcess([*arguments, "--ulysses-degree", "4"], errors)
    notes = [each["text"] for each in batch.remaining_events() if each["event"] == "note"]
    assert sum("rank 1 was killed by SIGKILL" in note for note in notes) == 2
    assert "device 1 is excluded: it failed repeatedly; 3 are left" in notes
    metadata = json.loads((tmp_path / "out" / "shot-0.npy.json").read_text())
    assert metadata["engine"]["device_ids"] == [0, 2, 3]
    assert metadata["layout"]["taken"] == "1x1x3"
    expected = VideoEngine.from_pretrained(model).generate(
        VideoRequest(prompt="a cat walks", seed=0, num_inference_steps=kills.STEPS)
    )
    frames = np.load(tmp_path / "out" / "shot-0.npy")
    np.testing.assert_allclose(frames, expected.frames, rtol=0, atol=1e-4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk_fails_a_shot_and_keeps_its_latents(
    model: str, small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk is full before the start, then while a snapshot, a video and the queue are written.

    Earlier videos stay as they are.
    """
    shots, out = tmp_path / "shots.jsonl", small_disk / "out"
    rows: list[dict[str, Any]] = [
        {"id": "first", "prompt": "a", "seed": 1, "output": "first.npy", "num_frames": 5},
        {"id": "second", "prompt": "a", "seed": 2, "output": "second.npy", "num_frames": 33},
    ]
    shots.write_text(json.dumps(rows[0]) + "\n")
    batch = ["batch", str(shots), "-o", str(out), "--model", model, "--attempts", "2"]
    batch += ["--num-inference-steps", "4", "--snapshot-steps", "1"]
    assert cli.main(batch) == 0
    first = (out / "first.npy").read_bytes()

    def run_with_free_space(free_bytes: int) -> tuple[int, str]:
        """Run the batch on a disk with that much free space; returns exit code and stderr."""
        capfd.readouterr()
        filler = small_disk / "filler"
        filler.write_bytes(b"\0" * max(0, shutil.disk_usage(small_disk).free - free_bytes))
        code = cli.main(batch)
        filler.unlink()
        stderr = capfd.readouterr().err
        assert (out / "first.npy").read_bytes() == first
        assert "Traceback" not in stderr
        return code, stderr

    shots.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, stderr = run_with_free_space(0)
    assert code == 2
    assert len(stderr.splitlines()) == 1
    assert re.search(rf"longtake: output='{out}': .* cannot be written to \(No space left", stderr)
    code, stderr = run_with_free_space(400_000)  # the video has 608 KB
    assert code == 1, stderr
    (line,) = re.findall(r"^longtake: second failed: .*$", stderr, re.MULTILINE)
    assert "second.npy cannot be written: No space left on device" in line
    assert not [path for path in out.rglob("*") if ".partial" in path.name]
    assert cli.main([*batch, "--retry-failed"]) == 0  # only decodes the saved latents
    metadata = json.loads((out / "second.npy.json").read_text())
    assert metadata["snapshots"]["steps_before"] == 4
    assert (out / "first.npy").read_bytes() == first
