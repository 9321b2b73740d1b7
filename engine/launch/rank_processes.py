"""Starts, inspects and kills the processes of ranks on this machine."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

from longtake.errors import EngineError
from longtake.files.atomic import cause

_LOG_TAIL_LINES = 400


class RankProcesses:
    """One process per rank. Creating it starts them; their output goes to log files.

    Args:
        module: Module that each process runs.
        environments: Variables added to the environment, by rank.
        scratch: Folder for the logs; the system's temporary folder if None.

    Raises:
        EngineError: The processes cannot be started.
    """

    def __init__(
        self,
        module: str,
        environments: Mapping[int, dict[str, str]],
        scratch: Path | None = None,
    ) -> None:
        try:
            self._logs = tempfile.TemporaryDirectory(prefix="longtake-", dir=scratch)
            self._started = self._start(module, environments)
        except OSError as error:
            raise EngineError(
                f"the ranks cannot be started in {scratch or tempfile.gettempdir()}: {cause(error)}"
            ) from error

    def _start(self, module: str, environments: Mapping[int, dict[str, str]]) -> SubprocessContext:
        """Start the processes from another thread: in the main one torch sets signal handlers."""
        with ThreadPoolExecutor(1) as pool, _quiet_elastic():
            starting = pool.submit(
                start_processes,
                name="longtake",
                entrypoint=sys.executable,
                # -P: do not import libraries from the working directory
                args={rank: (*_SAFE_PATH, "-m", module) for rank in environments},
                envs=dict(environments),
                logs_specs=DefaultLogsSpecs(self._logs.name, redirects=Std.ALL),
            )
            try:
                started = starting.result()
            except BaseException:
                with contextlib.suppress(Exception):  # processes started before Ctrl-C
                    starting.result().close(death_sig=signal.SIGKILL)
                self._logs.cleanup()
                raise
        assert isinstance(started, SubprocessContext)
        return started

    def running(self) -> list[int]:
        """The ranks whose processes have not ended."""
        ended = self.exit_codes()
        return [rank for rank in self._started.subprocess_handlers if rank not in ended]

    def exit_codes(self) -> dict[int, int]:
        """Exit codes of ended processes, by rank; negative: the signal that killed one."""
        return {
            rank: code
            for rank, handler in self._started.subprocess_handlers.items()
            if (code := handler.proc.poll()) is not None
        }

    def suspended(self) -> list[int]:
        """The ranks whose processes are stopped by a signal or a debugger."""
        stopped = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        ranks = []
        for rank, pid in self._started.pids().items():
            with contextlib.suppress(psutil.Error):
                if psutil.Process(pid).status() in stopped:
                    ranks.append(rank)
        return ranks

    def last_lines(self, rank: int) -> list[str]:
        """The last lines that a rank wrote to stderr."""
        with contextlib.suppress(OSError):
            log = Path(self._started.stderrs[rank])
            return log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return []

    def kill(self) -> None:
        """Kill all processes and remove their logs."""
        with _quiet_elastic():
            self._started.close(death_sig=signal.SIGKILL, timeout=5)
        for handler in self._started.subprocess_handlers.values():
            for log in (handler._stdout, handler._stderr):  # open if the rank has ended
                if log is not None:
                    log.close()
        self._logs.cleanup()


_SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()


@contextmanager
def _quiet_elastic() -> Iterator[None]:
    """Silence torch's warnings about processes that are killed on purpose."""
    elastic = logging.getLogger("torch.distributed.elastic")
    level = elastic.level
    elastic.setLevel(logging.ERROR)
    try:
        yield
    finally:
        elastic.setLevel(level)
