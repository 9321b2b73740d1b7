"""longtake generate --resume, in the same layout and in another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.engine.media.snapshot import read_snapshot
from tests.e2e.conftest import Command
from tests.e2e.test_cli import names
from tests.forked_commands import ForkedCommand

STEPS = 24
COMMON = ["a cat walks", "--num-inference-steps", str(STEPS)]


@pytest.fixture
def generate(model: str, run_command: Command) -> Command:
    """Run generate in this process; returns exit code, stdout, stderr."""
    return lambda *arguments: run_command("generate", *COMMON, "--model", model, *arguments)


def interrupted(
    model: str, out: Path, at: tuple[str, int], number: signal.Signals, *more: str
) -> dict[str, Any]:
    """Send a signal to the command at some progress; returns its last event."""
    arguments = [*COMMON, "--model", model, "-o", str(out), "--snapshot-steps", "5", "--json"]
    words = ["generate", *arguments, *more]
    with ForkedCommand(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if (event.get("phase"), event.get("done")) == at:
                os.kill(process.pid, number)
                break
        lines = process.stdout.readlines()
        process.wait(timeout=30)
    return json.loads(lines[-1]) if lines else {}


def test_killed_rendering_resumes_with_its_seed(generate: Any, model: str, tmp_path: Path) -> None:
    """Killed on two ranks, resumed on two and on one."""
    out, snapshot_path = tmp_path / "out.npy", tmp_path / "out.snapshot.safetensors"
    interrupted(model, out, ("denoising", 13), signal.SIGKILL, "--devices", "2")
    assert [name for name in names(tmp_path) if not name.startswith(".")] == [snapshot_path.name]
    snapshot, saved = snapshot_path.read_bytes(), read_snapshot(snapshot_path)
    assert saved is not None
    steps = saved.state.steps_done
    assert steps >= 10 and steps % 5 == 0
    code, _, stderr = generate("-o", out, "--devices", 2, "--resume")
    assert code == 0
    assert names(tmp_path) == ["out.npy", "out.npy.json"]
    metadata, again = json.loads((tmp_path / "out.npy.json").read_text()), np.load(out)
    assert metadata["snapshots"]["steps_before"] == steps
    assert stderr.splitlines()[0] == f"resumes after step {steps} of 24"
    seed = metadata["request"]["seed"]

    snapshot_path.write_bytes(snapshot)
    code, _, stderr = generate("-o", out, "--resume")
    assert (code, stderr.count("already exists")) == (2, 1)
    assert generate("-o", out, "--resume", "--overwrite")[0] == 0
    np.testing.assert_allclose(np.load(out), again, rtol=0, atol=1e-4)
    assert generate("-o", out, "--devices", 2, "--seed", seed, "--overwrite")[0] == 0
    np.testing.assert_array_equal(np.load(out), again)

    snapshot_path.write_bytes(snapshot)
    code, _, stderr = generate("-o", out, "--seed", seed + 1, "--resume", "--overwrite")
    assert code == 0
    assert stderr.splitlines()[0] == (
        f"{snapshot_path} is of another request: seed={seed}, not {seed + 1}: it starts over"
    )
    snapshot_path.write_bytes(snapshot)
    stored = ("--storage-dtype", "float8", "--seed", seed, "--resume", "--overwrite")
    code, _, stderr = generate("-o", out, *stored)
    assert code == 0
    assert stderr.splitlines()[0] == (
        f"{snapshot_path} is of another dtype: float32, not float32, stored as float8: it starts "
        "over"
    )
    metadata = json.loads((tmp_path / "out.npy.json").read_text())
    assert metadata["engine"]["storage_dtype"] == "float8"
    assert abs(np.load(out) - again).max() > 1e-3
    snapshot_path.write_bytes(snapshot[:-9])
    code, _, stderr = generate("-o", out, "--seed", seed, "--resume", "--overwrite")
    assert code == 0
    assert f"{snapshot_path} is damaged" in stderr.splitlines()[0]
    np.testing.assert_allclose(np.load(out), again, rtol=0, atol=1e-4)
    code, _, stderr = generate("-o", out, "--seed", seed, "--resume", "--overwrite")
    assert (
        stderr.splitlines()[0] == f"{snapshot_path} does not exist: it starts with the first step"
    )


def test_interrupted_decoding_resumes_from_latents(
    generate: Any, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    tiles = ("--num-frames", "33", "--decode-tile-size", "8", "32", "32")
    last_event = interrupted(model, out, ("decoding", 3), signal.SIGTERM, *tiles)
    assert last_event["exit_code"] == 130
    assert names(tmp_path) == ["out.latents.safetensors"]
    code, _, stderr = generate("-o", out, *tiles, "--resume")
    assert code == 0
    latents_path = tmp_path / "out.latents.safetensors"
    assert stderr.splitlines()[0] == f"decodes the latents in {latents_path}"
    assert names(tmp_path) == ["out.npy", "out.npy.json"]
    metadata = json.loads((tmp_path / "out.npy.json").read_text())
    assert "denoising" not in metadata["seconds"]
    first = np.load(out)
    again = ("--seed", metadata["request"]["seed"], "--overwrite")
    assert generate("-o", out, *tiles, *again)[0] == 0
    np.testing.assert_array_equal(np.load(out), first)


def test_ctrl_c_writes_a_snapshot_with_resume(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    last_event = interrupted(model, out, ("denoising", 8), signal.SIGINT, "--resume")
    assert last_event["exit_code"] == 130
    assert "out.snapshot.safetensors was written" in last_event["message"]
    assert names(tmp_path) == ["out.snapshot.safetensors"]
