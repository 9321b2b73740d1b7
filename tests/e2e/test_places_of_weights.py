"""Weights that are streamed or read from disk, on the command line: the same file, and faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.until import until

OPTIONS = (
    *("--height=32", "--width=48", "--num-frames=5", "--seed=1", "--quiet"),
    *("--devices=2", "--num-inference-steps=60", "--snapshot-steps=1"),
)


def generate(folder: Path, model: Path, *options: str) -> subprocess.Popen[str]:
    """A rendering to out.mp4 in a folder, in a process of its own."""
    command = [sys.executable, "-m", "longtake", "generate", "a cat", f"--model={model}"]
    return subprocess.Popen(
        [*command, *OPTIONS, *options, "-o", str(folder / "out.mp4")],
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what it wrote to stderr."""
    _, errors = process.communicate(timeout=180)
    return process.returncode, errors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, model: Path) -> bytes:
    """The file that resident weights give."""
    folder = tmp_path_factory.mktemp("resident")
    code, errors = finish(generate(folder, model, "--weights=resident"))
    assert code == 0, errors
    return (folder / "out.mp4").read_bytes()


@pytest.mark.parametrize("place", ["streamed", "disk"])
def test_the_same_file_byte_by_byte(
    tmp_path: Path, model: Path, expected: bytes, place: str
) -> None:
    code, errors = finish(
        generate(tmp_path, model, f"--weights={place}", f"--text-weights={place}")
    )
    assert code == 0, errors
    assert (tmp_path / "out.mp4").read_bytes() == expected
    described = json.loads((tmp_path / "out.mp4.json").read_text())
    assert described["engine"]["weights"] == place


def test_a_disk_that_goes_away_in_the_middle_loses_no_step(
    tmp_path: Path, model: Path, expected: bytes
) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    (weights,) = (own / "transformer").glob("*.safetensors")
    kept, snapshot = shutil.copy(weights, tmp_path / "kept"), tmp_path / "out.snapshot.safetensors"
    process = generate(tmp_path, own, "--weights=disk")
    until(snapshot.exists, 120)
    os.truncate(weights, 10_000)
    code, errors = finish(process)
    assert code == 3, errors
    assert "cannot be read from" in errors and "the file was c" in errors
    assert "Traceback" not in errors
    assert f"{snapshot} holds the finished steps: --resume continues" in errors
    os.replace(kept, weights)
    code, errors = finish(generate(tmp_path, own, "--weights=disk", "--resume"))
    assert code == 0, errors
    assert (tmp_path / "out.mp4").read_bytes() == expected
    assert not snapshot.exists()


def test_a_stopped_video_goes_on_with_its_weights_elsewhere(
    tmp_path: Path, model: Path, expected: bytes
) -> None:
    process = generate(tmp_path, model, "--weights=streamed")
    until((tmp_path / "out.snapshot.safetensors").exists, 120)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code not in (0, 2, 3), errors
    code, errors = finish(generate(tmp_path, model, "--weights=resident", "--resume"))
    assert code == 0, errors
    assert (tmp_path / "out.mp4").read_bytes() == expected
