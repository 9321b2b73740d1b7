"""Ranks as processes on this machine, and what becomes of them when one dies or hangs."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

from longtake import errors
from longtake.configs.engine import EngineConfig
from longtake.engine.channel import Mailbox, listen_locally
from longtake.engine.deadlines import TIMED_OUT
from longtake.engine.launcher import Launcher
from longtake.engine.worker import Job, RankReport, Sink
from longtake.errors import EngineError, RefusedInputError, Stopped, one_line
from longtake.pipelines.rendering import OnProgress, Progress

logger = logging.getLogger(__name__)

_LOG_LINES = 12


class LocalProcesses(Launcher):
    """Ranks as processes on this machine, which stay alive between requests.

    They listen on this machine alone. When one dies, or makes no progress in time, all end.
    """

    def __init__(self, config: EngineConfig, device_type: str) -> None:
        self._config = config
        self._device_type = device_type
        self._num_jobs = 0
        self._step_s = 0.0
        self._processes: SubprocessContext | None = None
        self._logs: tempfile.TemporaryDirectory[str] | None = None

    def start(self, on_progress: OnProgress) -> None:
        """Start the processes; returns when all have loaded."""
        self._store = listen_locally()
        self._mailbox = Mailbox(self._store, "mail")
        self._jobs = Mailbox(self._store, "jobs", keep=True)
        self._store.set("config", self._config.model_dump_json())
        self._store.set("device", self._device_type)
        self._logs = tempfile.TemporaryDirectory(prefix="longtake-")
        ranks = range(self._config.devices)
        try:
            with _own_signal_handlers(), _quiet_elastic():
                started = start_processes(
                    name="longtake",
                    entrypoint=sys.executable,
                    args={rank: ("-m", "longtake.engine.local_rank") for rank in ranks},
                    envs={rank: self._environment(rank) for rank in ranks},
                    logs_specs=DefaultLogsSpecs(self._logs.name, redirects=Std.ALL),
                )
            assert isinstance(started, SubprocessContext)
            self._processes = started
            self._receive(on_progress)
        except BaseException:
            self._kill()
            raise

    def render(self, job: Job, sink: Sink, on_progress: OnProgress) -> list[RankReport]:
        """Render on the processes."""
        self._num_jobs += 1
        number = self._num_jobs
        try:
            self._jobs.post(
                {"kind": "render", "number": number, "job": job.model_dump(mode="json")}
            )
            return self._receive(on_progress, sink)
        except (RefusedInputError, Stopped):
            raise
        except EngineError:
            self._kill()
            raise
        except BaseException:
            self._stop(number)
            raise

    @property
    def alive(self) -> bool:
        """Whether the processes run."""
        return self._processes is not None

    def close(self) -> None:
        """Tell the processes to end; kill those that do not."""
        if self._processes is not None:
            with contextlib.suppress(dist.DistError):
                self._jobs.post({"kind": "exit"})
            deadline = time.monotonic() + self._config.rank_loss_timeout_s / 2
            while self._alive() and time.monotonic() < deadline:
                time.sleep(0.02)
        self._kill()

    def _environment(self, rank: int) -> dict[str, str]:
        devices = self._config.devices
        package = str(Path(errors.__file__).parent.parent)
        paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(devices),
            "LOCAL_WORLD_SIZE": str(devices),
            "LONGTAKE_PORT": str(self._store.port),
            "LONGTAKE_PARENT": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(paths),
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        }
        if self._device_type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // devices))
        return environment

    def _receive(
        self, on_progress: OnProgress, sink: Sink | None = None, deadline: float = math.inf
    ) -> list[RankReport]:
        """Take in what rank 0 says until the job, or the loading, is done."""
        moved_at = time.monotonic()
        states: dict[int, dict[str, Any]] = {}
        while True:
            if time.monotonic() > deadline:
                raise EngineError("they did not stop in time")
            read = self._mailbox.read(timeout_s=0.2)
            if read is None:
                self._check_alive()
                if (seen := self._states()) != states:
                    moved_at, states = time.monotonic(), seen
                self._check_progress(states, time.monotonic() - moved_at)
                continue
            message, payload = read
            match message.pop("kind"):
                case "ready":
                    return []
                case "progress":
                    self._step_s, moved_at = time.monotonic() - moved_at, time.monotonic()
                    on_progress(Progress(**message))
                case "done":
                    return [RankReport(**report) for report in message["reports"]]
                case "stopped":
                    raise Stopped(message["text"])
                case "refused":
                    raise _refusal(message)
                case kind:
                    assert sink is not None
                    flat = np.frombuffer(payload, dtype=np.float32).copy()
                    array = flat.reshape(message.pop("shape"))
                    if kind == "latents":
                        sink.latents(array)
                    else:
                        sink.frame(message["video"], message["index"], array)

    def _states(self) -> dict[int, dict[str, Any]]:
        """What each rank last said of its progress."""
        keys = {rank: f"state/{rank}" for rank in range(self._config.devices)}
        return {
            rank: json.loads(self._store.get(key))
            for rank, key in keys.items()
            if self._store.check([key])
        }

    def _check_alive(self) -> None:
        """Raise what ended the ranks, if one has ended."""
        if len(self._alive()) == self._config.devices:
            return
        # The others notice in a moment and say so; the first cause is wanted.
        time.sleep(min(1.0, self._config.rank_loss_timeout_s / 10))
        failures = {
            rank: json.loads(self._store.get(f"failure/{rank}"))
            for rank in range(self._config.devices)
            if self._store.check([f"failure/{rank}"])
        }
        for failure in failures.values():
            if failure["kind"] == "refused":
                raise _refusal(failure)
        exits = self._exit_codes()
        silent = [rank for rank in exits if rank not in failures]
        failed = [rank for rank, failure in failures.items() if failure["kind"] == "failed"]
        rank = next(iter(silent or failed or exits))
        raise EngineError(self._obituary(rank, exits[rank], failures.get(rank)))

    def _check_progress(self, states: dict[int, dict[str, Any]], idle_s: float) -> None:
        """Ranks end themselves at their deadlines; where none can (all are suspended), here."""
        allowed = max((state["timeout_s"] for state in states.values()), default=None)
        if allowed is None:
            allowed = self._config.load_timeout_s
        if idle_s > allowed + self._config.rank_loss_timeout_s:
            raise EngineError(
                f"no rank made progress for {idle_s:.0f} s, {allowed:.0f} s were allowed: all were "
                "ended; see what holds them up (are they suspended?), or raise the timeout"
            )

    def _obituary(self, rank: int, code: int, failure: dict[str, Any] | None) -> str:
        state = self._states().get(rank, {})
        log = self._log_tail(rank)
        where = state.get("phase", "starting")
        if state.get("total"):
            where += f", {state['done']} of {state['total']} done"
        if failure is not None:
            how = f"failed: {failure['type']}: {failure['text']}"
        elif any(TIMED_OUT in line for line in log):
            how = f"made no progress for {state.get('timeout_s', 0):.0f} s and was ended"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = "died"
        lines = "".join(f"\n  {line}" for line in log[-_LOG_LINES:])
        said = f"; its last lines:{lines}" if lines else "; it said nothing"
        return f"rank {rank} {how} (exit code {code}, {where}); all ranks were ended{said}"

    def _log_tail(self, rank: int) -> list[str]:
        if self._processes is None:
            return []
        path = self._processes.stderrs[rank]
        with contextlib.suppress(OSError):
            return Path(path).read_text(errors="replace").splitlines()[-400:]
        return []

    def _alive(self) -> list[int]:
        assert self._processes is not None
        return [
            rank
            for rank, handler in self._processes.subprocess_handlers.items()
            if handler.proc.poll() is None
        ]

    def _exit_codes(self) -> dict[int, int]:
        assert self._processes is not None
        return {
            rank: code
            for rank, handler in self._processes.subprocess_handlers.items()
            if (code := handler.proc.poll()) is not None
        }

    def _stop(self, number: int) -> None:
        """Have the ranks stop between steps; end them if they do not, or at a second Ctrl-C."""
        deadline = time.monotonic() + max(self._config.rank_loss_timeout_s, 2 * self._step_s)
        try:
            self._store.set(f"stop/{number}", "1")
            self._receive(lambda progress: None, _Nowhere(), deadline)
        except (Stopped, RefusedInputError):
            return
        except BaseException as error:
            logger.warning("the ranks were ended in the middle of a step: %s", one_line(error))
            self._kill()

    def _kill(self) -> None:
        if self._processes is not None:
            with _quiet_elastic():
                self._processes.close(death_sig=signal.SIGKILL, timeout=5)
            for handler in self._processes.subprocess_handlers.values():
                for log in (handler._stdout, handler._stderr):  # left open where a rank had ended
                    if log is not None:
                        log.close()
            self._processes = None
        if self._logs is not None:
            self._logs.cleanup()
            self._logs = None


class _Nowhere:
    """A sink that drops everything."""

    def latents(self, latents: Any) -> None:
        """Drop them."""

    def frame(self, video: int, index: int, frame: Any) -> None:
        """Drop it."""


def _refusal(message: dict[str, Any]) -> RefusedInputError:
    """A rank's refusal, of the kind that it was there."""
    kind = getattr(errors, message["type"], RefusedInputError)
    refusal: RefusedInputError = kind(message["text"])
    return refusal


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """torch.distributed.elastic takes the signals for itself; they are the caller's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {each: signal.getsignal(each) for each in taken}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


@contextmanager
def _quiet_elastic() -> Iterator[None]:
    """It warns of every process that is ended on purpose."""
    elastic = logging.getLogger("torch.distributed.elastic")
    level = elastic.level
    elastic.setLevel(logging.ERROR)
    try:
        yield
    finally:
        elastic.setLevel(level)
