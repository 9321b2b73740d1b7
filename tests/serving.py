"""A server process, started by the command that users run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.forked_commands import ForkedCommand
from tests.processes import still_running


class Server:
    """A process of ``longtake serve``, forked unless its environment has a ``PYTHONPATH``.

    Args:
        folder: The data folder.
        arguments: Arguments of the command.
        log: File that its output is appended to.
        environment: Environment variables in addition to this process's own.

    Attributes:
        url: Base URL of the server.
        client: An HTTP client of the server.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], log: Path, environment: dict[str, str]
    ) -> None:
        self.folder = folder
        self.log = log
        words = ["serve", "--port", "0", "--data-dir", str(folder), *arguments]
        options: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1", **environment}}
        with log.open("a") as file:
            options |= {"stdout": file, "stderr": subprocess.PIPE}
            self.process: ForkedCommand | subprocess.Popen[str]
            if "PYTHONPATH" in environment:
                command = [sys.executable, "-m", "longtake", *words]
                self.process = subprocess.Popen(command, text=True, **options)
            else:
                self.process = ForkedCommand(words, **options)
        assert self.process.stderr is not None
        output = []
        for line in self.process.stderr:
            output.append(line)
            if found := re.search(r" at (http://\S+),", line):
                break
        else:
            raise AssertionError(f"the server did not listen: {''.join(output)}")
        self.url = found[1]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.log.open("a") as file:
            for line in self.process.stderr:
                file.write(line)
                file.flush()

    def wait_ready(self) -> None:
        """Wait until the model is loaded."""
        deadline = time.monotonic() + 120
        while self.client.get("/ready").status_code != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def create(self, **fields: Any) -> dict[str, Any]:
        """Queue a video."""
        answer = self.client.post("/v1/videos", json={"prompt": "a red circle", **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def video(self, name: str) -> dict[str, Any]:
        """The video object of a video."""
        return dict(self.client.get(f"/v1/videos/{name}").json())

    def wait(self, name: str, timeout: float = 120) -> dict[str, Any]:
        """Wait until a video has ended, and return its object."""
        deadline = time.monotonic() + timeout
        while (video := self.video(name))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < deadline, video
            time.sleep(0.1)
        return video

    def family(self) -> list[psutil.Process]:
        """The server's process and all its descendants."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def kill(self) -> None:
        """Send SIGKILL to the server's process, and wait until its descendants have ended."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        assert not still_running(family, timeout=15)
        self._close()

    def stop(self) -> int:
        """Stop the server with repeated signals, and return the exit code."""
        family = self.family() if self.process.poll() is None else []
        for number in 10 * (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.process.send_signal(number)
            time.sleep(0.01)
        code = self.process.wait(timeout=60)
        assert not still_running(family, timeout=10)
        self._close()
        return code

    def _close(self) -> None:
        self._reader.join(timeout=10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.client.close()


@contextmanager
def serving(
    folder: Path, *arguments: str, ready: bool = True, **environment: str
) -> Iterator[Server]:
    """A server that is stopped at the end, leaving no process behind and no errors in its log."""
    folder.mkdir(exist_ok=True)
    server = Server(folder / "data", arguments, folder / "log", environment)
    try:
        if ready:
            server.wait_ready()
        yield server
    finally:
        killed = server.process.poll() is not None
        code = 0 if killed else server.stop()
    assert code == 0
    output = server.log.read_text()
    assert killed or output.count("stopped; ") == 1, output
    for traceback in output.split("Traceback ")[1:]:  # Gradio logs invalid values
        assert "longtake/serve/" not in traceback, output
