"""Forks commands of longtake from the server that ranks are forked from.

A new interpreter takes two CPU seconds to import what a command needs, and three more for each of
its ranks; a forked one takes none. Signals, exit codes, streams, environment and children are those
of a process of its own. Tests of what is printed while libraries are imported, and of the start
itself, start a new interpreter.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver, reduction
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

import psutil

from tests.forked_ranks import fork_context, rank_of, start_processes


class ForkedCommand:
    """A command in a forked process: the part of ``subprocess.Popen`` that tests use.

    Args:
        arguments: Arguments of ``longtake``.
        stdout: ``subprocess.PIPE`` or an open file; this process's own if None.
        stderr: The same.
        env: Environment variables; this process's own if None.
        cwd: Working folder; this process's own if None.

    Attributes:
        pid: Process id.
        stdout: Text file of a pipe, or None.
        stderr: The same.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.stdout, out = _stream(stdout, 1)
        self.stderr, err = _stream(stderr, 2)
        self._process = fork_context().Process(
            target=_run,
            args=(
                [str(each) for each in arguments],
                [_Inherited(out), _Inherited(err)],
                dict(os.environ if env is None else env),
                str(cwd or Path.cwd()),
            ),
        )
        self._process.start()
        for file in (out, err):
            os.close(file)
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        """The same as :attr:`returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended; returns the exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(["longtake"], timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What the process writes to its pipes until it has ended."""
        found = {}

        def read(name: str, stream: IO[str]) -> None:
            with stream:
                found[name] = stream.read()

        streams = {"stdout": self.stdout, "stderr": self.stderr}
        readers = [
            threading.Thread(target=read, args=each, daemon=True)
            for each in streams.items()
            if each[1] is not None
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return found.get("stdout", ""), found.get("stderr", "")

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def __enter__(self) -> ForkedCommand:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def run_command(
    arguments: Sequence[object], *, timeout: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as ``subprocess.run`` does with captured output."""
    pipes: Any = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with ForkedCommand(arguments, **pipes, **options) as command:
        out, err = command.communicate(timeout)
    return subprocess.CompletedProcess([*map(str, arguments)], command.wait(), out, err)


def ranks_of(pid: int) -> list[psutil.Process]:
    """The running ranks of a command."""
    return [process for process, _ in _numbered_ranks(pid)]


def ranks_by_number(pid: int) -> dict[int, psutil.Process]:
    """The running ranks of a command, by number."""
    return {number: process for process, number in _numbered_ranks(pid)}


def _numbered_ranks(pid: int) -> list[tuple[psutil.Process, int]]:
    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                number = rank_of(child)
                if number is not None and child.status() != psutil.STATUS_ZOMBIE:
                    found.append((child, number))
    return found


class _Inherited:
    """A file descriptor that the forked process inherits."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (reduction.DupFd(self._number),)


def _detached(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


def _stream(wanted: int | IO[Any] | None, own: int) -> tuple[IO[str] | None, int]:
    """The readable end of a pipe, or None, and the descriptor that the process writes to."""
    if wanted == subprocess.PIPE:
        read, write = os.pipe()
        return os.fdopen(read, "r"), write
    if wanted is None:
        return None, os.dup(own)
    assert not isinstance(wanted, int)
    return None, os.dup(wanted.fileno())


def _run(arguments: list[str], files: list[int], environment: dict[str, str], folder: str) -> None:
    """Run a command as ``python -m longtake`` does; does not return."""
    from longtake.__main__ import main
    from longtake.engine.launch import rank_processes

    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["longtake", *arguments]
    _fork_server()
    with patch.object(rank_processes, "start_processes", start_processes):
        main()


def _fork_server() -> None:
    """Have a fork of this process serve its own forks, with all modules that are imported."""
    listener = socket.socket(socket.AF_UNIX)
    address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    listener.bind(address)
    listener.listen()
    ends, alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        forkserver.main(listener.fileno(), ends, [])
        os._exit(0)
    os.close(ends)
    listener.close()
    server: Any = forkserver._forkserver
    server._forkserver_address, server._forkserver_alive_fd = address, alive
    server._forkserver_pid = pid
