"""Ranks that torchrun starts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.e2e.test_cli import names, run
from tests.processes import still_running


def test_port_in_use_under_torchrun(model: str, tmp_path: Path) -> None:
    """Another program holds the port of the group."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        group = {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listener.getsockname()[1]),
        }
        path = str(tmp_path / "out.mp4")
        ran = run(["a", "--model", model, "-o", path, "--quiet", "--load-timeout-s", "5"], **group)
    assert ran.returncode == 3
    assert f"cannot meet the others at 127.0.0.1:{group['MASTER_PORT']}" in ran.stderr
    assert names(tmp_path) == []


GENERATE_AND_CHECK_THREADS = """
import sys
from pathlib import Path
from longtake.cli.main import main

code = main(sys.argv[1:])
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
sys.exit(code)
"""
"""Threads of gloo that still run when the interpreter exits can abort the process."""


def test_torchrun_ranks_render_one_video(
    model: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, generate: Any
) -> None:
    """All ranks render one video, and leave no thread of the process group behind."""
    expected, joined = tmp_path / "a.npy", tmp_path / "b.npy"
    assert generate("a cat", "-o", str(expected), "--seed", "1")[0] == 0
    program = tmp_path_factory.mktemp("program") / "generate.py"
    program.write_text(GENERATE_AND_CHECK_THREADS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    ran = subprocess.run(
        [*torchrun, str(program), "generate", "a cat", "--model", model, "--seed", "1"]
        + ["-o", str(joined)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("on 3 ranks") == 1
    np.testing.assert_allclose(np.load(joined), np.load(expected), rtol=0, atol=1e-4)
    assert names(tmp_path) == ["a.npy", "a.npy.json", "b.npy", "b.npy.json"]


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program on two ranks in its own session, which is killed afterwards."""
    started: list[subprocess.Popen[str]] = []

    def start(*program: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        process = subprocess.Popen(
            [*command, "--nproc-per-node=2", *program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def steps_taken(process: subprocess.Popen[str]) -> None:
    """Wait until a program reports its third step."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") and json.loads(line).get("done") == 3:
            return


@pytest.mark.parametrize(
    "long",
    [
        ["--num-inference-steps", "10000"],
        ["--num-videos", "1024", "--num-frames", "1", "--num-inference-steps", "1"],
    ],
    ids=["denoising", "decoding"],
)
def test_ctrl_c_stops_torchrun_ranks(
    model: str, tmp_path: Path, torchrun: Any, long: list[str]
) -> None:
    arguments = ["-m", "longtake", "generate", "a", "--model", model, "--json", *long]
    process = torchrun(*arguments, "-o", str(tmp_path / "out.npy"))
    steps_taken(process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=25)
    assert time.monotonic() - start < 15  # torchrun kills after 30
    assert not still_running(ranks, timeout=1)
    for rank in ("", "rank 1: "):
        assert f"longtake: {rank}stopped; nothing was written" in err
    assert names(tmp_path) == []


def test_torchrun_rank_that_dies_ends_the_others(model: str, tmp_path: Path, torchrun: Any) -> None:
    arguments = ["-m", "longtake", "generate", "a", "--model", model, "--json"]
    process = torchrun(
        *arguments, "-o", str(tmp_path / "out.mp4"), "--num-inference-steps", "10000"
    )
    steps_taken(process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    start = time.monotonic()
    next(rank for rank in ranks if rank.environ().get("RANK") == "1").kill()
    _, err = process.communicate(timeout=25)
    assert time.monotonic() - start < 10
    assert not still_running(ranks, timeout=1)
    assert process.returncode != 0
    (line,) = [line for line in err.splitlines() if line.startswith("longtake: ")]
    assert "rank 0 lost a peer among ranks [0, 1]" in line or "stopped" in line
    assert names(tmp_path) == []


def test_torchrun_rank_that_raises_ends_the_others(
    model: str, tmp_path: Path, torchrun: Any
) -> None:
    """It exits at once, while the others are within a step."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\n"
        "from longtake import VideoEngine, VideoRequest\n"
        "from longtake.errors import RequestError\n"
        "def fail(progress):\n"
        "    if progress.phase == 'denoising' and progress.done == 3:\n"
        "        print(json.dumps({'done': 3}), flush=True)\n"
        "        raise RequestError('nobody listens')\n"
        "with VideoEngine.from_pretrained(sys.argv[1]) as engine:\n"
        "    engine.generate(VideoRequest(prompt='a', num_inference_steps=10000), fail)\n"
    )
    process = torchrun(str(program), model)
    steps_taken(process)
    start = time.monotonic()
    _, err = process.communicate(timeout=25)
    assert time.monotonic() - start < 10
    assert process.returncode != 0
    assert "RequestError: nobody listens" in err


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        (dict(RANK="abc", WORLD_SIZE="2"), "RANK='abc' in the environment must be a whole number"),
        (dict(RANK="0", WORLD_SIZE="0"), "WORLD_SIZE='0' in the environment must be"),
        (dict(RANK="3", WORLD_SIZE="2"), "RANK='3' in the environment must be"),
        (dict(RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="0"), "LOCAL_WORLD_SIZE='0'"),
    ],
)
def test_invalid_torchrun_variables(
    generate: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], text: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = generate("a cat")
    assert (code, len(err.splitlines())) == (2, 1)
    assert text in err
