"""Weights that are streamed or read from disk, on the command line: the same file, and faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests import tiny
from tests.forked_commands import ForkedCommand, run_command
from tests.until import until

OPTIONS = (
    *("--height=32", "--width=48", "--num-frames=5", "--seed=1", "--quiet"),
    *("--devices=2", "--num-inference-steps=40", "--snapshot-steps=1"),
)


def words(folder: Path, model: Path, *options: str) -> list[str]:
    """The command that renders to out.mp4 in a folder."""
    output = ["-o", str(folder / "out.mp4")]
    return ["generate", "a cat", f"--model={model}", *OPTIONS, *options, *output]


def rendered(folder: Path, model: Path, *options: str) -> bytes:
    """The file that the command gives."""
    done = run_command(words(folder, model, *options))
    assert done.returncode == 0, done.stderr
    return (folder / "out.mp4").read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, model: Path) -> bytes:
    """The file that resident weights give."""
    return rendered(tmp_path_factory.mktemp("resident"), model, "--weights=resident")


@pytest.mark.parametrize("place", ["streamed", "disk"])
def test_the_same_file_byte_by_byte(
    tmp_path: Path, model: Path, expected: bytes, place: str
) -> None:
    places = (f"--weights={place}", f"--text-weights={place}")
    assert rendered(tmp_path, model, *places) == expected
    described = json.loads((tmp_path / "out.mp4.json").read_text())
    assert described["engine"]["weights"] == place


def test_a_disk_that_goes_away_in_the_middle_loses_no_step(
    tmp_path: Path, model: Path, expected: bytes
) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    (weights,) = (own / "transformer").glob("*.safetensors")
    kept, snapshot = shutil.copy(weights, tmp_path / "kept"), tmp_path / "out.snapshot.safetensors"
    with ForkedCommand(words(tmp_path, own, "--weights=disk"), stderr=subprocess.PIPE) as command:
        until(snapshot.exists, 120)
        os.truncate(weights, 10_000)
        _, errors = command.communicate(180)
    assert command.returncode == 3, errors
    assert "cannot be read from" in errors and "the file was c" in errors
    assert "Traceback" not in errors
    assert f"{snapshot} holds the finished steps: --resume continues" in errors
    os.replace(kept, weights)
    assert rendered(tmp_path, own, "--weights=disk", "--resume") == expected
    assert not snapshot.exists()


def test_a_stopped_video_goes_on_with_its_weights_elsewhere(
    tmp_path: Path, model: Path, expected: bytes
) -> None:
    with ForkedCommand(words(tmp_path, model, "--weights=streamed")) as command:
        until((tmp_path / "out.snapshot.safetensors").exists, 120)
        command.send_signal(signal.SIGTERM)
        assert command.wait(180) == 130
    assert rendered(tmp_path, model, "--weights=resident", "--resume") == expected
