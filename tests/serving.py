"""A server as users start it, and what a client says to it."""

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

from tests.processes import still_running

COMMAND = [sys.executable, "-m", "longtake", "serve", "--port", "0"]


class Server:
    """A process of ``longtake serve``.

    Args:
        folder: of its videos.
        arguments: of the command.
        log: that it writes to.
        environment: variables beside this process's own.

    Attributes:
        url: where it listens.
        client: to speak to it.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], log: Path, environment: dict[str, str]
    ) -> None:
        self.folder = folder
        self.log = log
        command = [*COMMAND, "--data-dir", str(folder), *arguments]
        with log.open("a") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r" at (http://\S+),", line):
                break
        else:
            raise AssertionError(f"it did not listen: {''.join(said)}")
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
        """Until its model is loaded."""
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
        """How one stands."""
        return dict(self.client.get(f"/v1/videos/{name}").json())

    def wait(self, name: str, timeout: float = 120) -> dict[str, Any]:
        """Until one has ended."""
        deadline = time.monotonic() + timeout
        while (video := self.video(name))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < deadline, video
            time.sleep(0.1)
        return video

    def family(self) -> list[psutil.Process]:
        """It and all that it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def kill(self) -> None:
        """As a power cut would, of this one process; all it started ends by itself."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        assert not still_running(family, timeout=15)
        self._close()

    def stop(self) -> int:
        """As a service manager does, again and again; returns the exit code."""
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
    """A server, and then its end, which must be a good one."""
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
    said = server.log.read_text()
    assert killed or said.count("stopped; ") == 1, said
    for fault in said.split("Traceback ")[
        1:
    ]:  # Gradio's, of values that no page sends, are its own
        assert "longtake/serve/" not in fault, said
