"""What is left when decoding fails or is stopped."""

from __future__ import annotations

import json
import resource
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from longtake.cli import main as cli
from tests.e2e.test_cli import names
from tests.e2e.test_decode import MANY_FRAMES, close
from tests.forked_commands import ForkedCommand, ranks_by_number
from tests.processes import still_running


def decoding(
    model: str, folder: Path, devices: int, at: int
) -> tuple[ForkedCommand, dict[int, psutil.Process]]:
    """Start a rendering and wait until it has decoded some tiles; returns it and its ranks."""
    arguments = ["a cat", "--seed", "3", "--model", model, "--devices", str(devices)]
    words = ["generate", *arguments, *MANY_FRAMES, "--json", "-o", str(folder / "out.npy")]
    process = ForkedCommand(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event.get("phase") == "decoding" and event["done"] == at:
            break
    return process, ranks_by_number(process.pid)


@pytest.fixture(scope="module")
def uninterrupted(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video of the same request without interruption."""
    path = tmp_path_factory.mktemp("whole") / "out.npy"
    arguments = ["a cat", "--seed", "3", "--model", model, *MANY_FRAMES, "-o", str(path)]
    assert cli.main(["generate", *arguments, "--quiet"]) == 0
    return path


@pytest.mark.parametrize("victim", [0, 1])
def test_rank_that_dies_while_decoding_leaves_latents(
    model: str, tmp_path: Path, uninterrupted: Path, victim: int
) -> None:
    process, ranks = decoding(model, tmp_path, 2, at=20)
    ranks[victim].kill()
    _, err = process.communicate(timeout=30)
    assert not still_running([*ranks.values()], timeout=1)
    assert process.returncode == 3
    assert names(tmp_path) == ["out.latents.safetensors"]
    (line,) = err.splitlines()
    assert line.startswith(f"longtake: rank {victim} was killed by SIGKILL (exit code -9, decoding")
    command_line = line.partition("; the latents are kept, and can be decoded: longtake ")[2]
    latents_path, out = tmp_path / "out.latents.safetensors", tmp_path / "out.npy"
    assert shlex.split(command_line) == (
        [
            "decode",
            str(latents_path),
            "--model",
            model,
            "--device",
            "cpu",
            "--devices",
            "2",
            "-o",
            str(out),
        ]
    )
    assert cli.main([*shlex.split(command_line), "--quiet"]) == 0
    close(out, uninterrupted)
    assert names(tmp_path) == ["out.latents.safetensors", "out.npy", "out.npy.json"]


def test_command_killed_while_decoding_leaves_latents(
    model: str, tmp_path: Path, uninterrupted: Path
) -> None:
    process, ranks = decoding(model, tmp_path, 2, at=20)
    process.kill()
    process.communicate(timeout=10)
    assert not still_running([*ranks.values()], timeout=10)
    assert [name for name in names(tmp_path) if not name.startswith(".")] == (
        ["out.latents.safetensors"]
    )
    latents_path, out = tmp_path / "out.latents.safetensors", tmp_path / "again.npy"
    assert cli.main(["decode", str(latents_path), "--model", model, "-o", str(out), "--quiet"]) == 0
    close(out, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_while_decoding_leaves_latents(
    model: str, tmp_path: Path, uninterrupted: Path, number: signal.Signals
) -> None:
    """Sent by a job scheduler or a closed terminal: the user has not discarded the video."""
    process, ranks = decoding(model, tmp_path, 2, at=20)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert not still_running([*ranks.values()], timeout=5)
    latents_path = tmp_path / "out.latents.safetensors"
    assert process.returncode == 130
    assert err.splitlines() == [f"longtake: stopped; {latents_path} was written"]
    assert names(tmp_path) == [latents_path.name]
    assert cli.main(["decode", str(latents_path), "-o", str(tmp_path / "out.npy"), "--quiet"]) == 0
    close(tmp_path / "out.npy", uninterrupted)


@pytest.mark.parametrize("devices", [1, 2])
def test_ctrl_c_while_decoding_leaves_nothing(model: str, tmp_path: Path, devices: int) -> None:
    process, ranks = decoding(model, tmp_path, devices, at=20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert not still_running([*ranks.values()], timeout=5)
    assert process.returncode == 130
    assert err.splitlines() == ["longtake: stopped; nothing was written"]
    assert names(tmp_path) == []


def test_full_disk_while_decoding_leaves_latents(longtake: Any, tmp_path: Path) -> None:
    """Simulated by a limit on file size between that of the latents and that of the video."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, unlimited[1]))
    path = tmp_path / "out.npy"
    (tmp_path / "out.latents.safetensors").write_text("of a job that failed before")
    try:
        code, _, err = longtake("generate", "a", "-o", path, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert code == 3
    latents_path = tmp_path / "out.latents-1.safetensors"
    assert names(tmp_path) == [latents_path.name, "out.latents.safetensors"]
    (line,) = err.splitlines()
    assert line.startswith(f"longtake: {path} cannot be written: File too large; the latents are ")
    assert f"longtake decode {latents_path} --model " in line
    assert longtake("decode", latents_path, "-o", path)[0] == 0
    assert np.load(path).shape == (9, 32, 48, 3)


def test_finished_video_leaves_no_latents(longtake: Any, tmp_path: Path) -> None:
    assert longtake("generate", "a", "-o", tmp_path / "out.gif")[0] == 0
    assert names(tmp_path) == ["out.gif", "out.gif.json"]
