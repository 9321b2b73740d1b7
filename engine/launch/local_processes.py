"""Ranks as processes on this machine, and what becomes of them when one dies or hangs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from longtake import errors
from longtake.configs.engine import EngineConfig
from longtake.engine.job import Job, RankReport
from longtake.engine.launch.channel import Mailbox, listen_locally
from longtake.engine.launch.deadlines import TIMED_OUT
from longtake.engine.launch.heartbeat import Heartbeats
from longtake.engine.launch.launcher import Launcher, refusal_of
from longtake.engine.launch.rank_processes import RankProcesses
from longtake.engine.worker import Beside, NullSink, Sink, TraceSink
from longtake.errors import LongtakeError, RankError, Stopped, one_line
from longtake.pipelines.progress import OnProgress, Progress, StopRequested, never
from longtake.pipelines.trace import TracePoint

logger = logging.getLogger(__name__)

_LOG_LINES = 12
_FIRST_CAUSES = ("failed", "out of memory")
_LOADING = 0
"""The number of the job that is not a rendering."""


class LocalProcesses(Launcher):
    """Ranks as processes on this machine, which stay alive between requests.

    They listen on this machine alone. When one dies, is suspended, gives no sign of life, makes
    no progress in time, or does not stop in time, all end.

    Args:
        scratch: folder for what they write to stdout and stderr; the system's for temporary files.
    """

    def __init__(self, config: EngineConfig, device_type: str, scratch: Path | None = None) -> None:
        self._config = config
        self._device_type = device_type
        self._scratch = scratch
        self._signs = Heartbeats(config.devices)
        self._num_jobs = _LOADING
        self._suspended_since: float | None = None
        self._processes: RankProcesses | None = None

    def start(self, on_progress: OnProgress, stop_requested: StopRequested = never) -> None:
        """Start the processes; returns when all have loaded."""
        self._store = listen_locally()
        self._mailbox = Mailbox(self._store, "mail")
        self._jobs = Mailbox(self._store, "jobs", keep=True)
        self._beside = Mailbox(self._store, "beside")
        self._store.set("config", self._config.model_dump_json())
        self._store.set("device", self._device_type)
        environments = {rank: self._environment(rank) for rank in range(self._config.devices)}
        self._signs = Heartbeats(self._config.devices)
        self._processes = RankProcesses(
            "longtake.engine.launch.local_rank", environments, self._scratch
        )
        try:
            self._receive(_LOADING, on_progress, stop_requested=stop_requested)
        except BaseException:
            self._kill()
            raise

    def render(
        self,
        job: Job,
        sink: Sink,
        on_progress: OnProgress,
        beside: Beside = None,
        stop_requested: StopRequested = never,
    ) -> list[RankReport]:
        """Render on the processes."""
        self._num_jobs += 1
        number = self._num_jobs
        try:
            if beside is not None:
                described = {"shape": beside.shape, "dtype": str(beside.dtype)}
                self._beside.post({"number": number, **described}, beside.tobytes())
            message = {"kind": "render", "number": number, "job": job.model_dump(mode="json")}
            self._jobs.post(message)
            answer = self._receive(number, on_progress, sink, stop_requested)
        except BaseException as error:
            if self.alive:  # it came from the caller, or is Ctrl-C
                self._stop(number, error)
            raise
        if isinstance(answer, LongtakeError):
            raise answer
        return answer

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
            while self._processes.running() and time.monotonic() < deadline:
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
            "LONGTAKE_DEVICE": str(self._config.devices_by_rank[rank]),
            "PYTHONPATH": os.pathsep.join(paths),
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        }
        if self._device_type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // devices))
        return environment

    def _receive(
        self,
        number: int,
        on_progress: OnProgress,
        sink: Sink | None = None,
        stop_requested: StopRequested = never,
    ) -> list[RankReport] | LongtakeError:
        """Take in what rank 0 says of one job until it is done.

        Returns:
            What each rank measured, or how all ranks alike refused or stopped the job.

        Raises:
            RankError: a rank died or hung; all were ended.
            RefusedInputError: a rank ended with it; all were ended.
            Stopped: it was requested; the ranks go on.
        """
        moved_at = time.monotonic()
        self._suspended_since = None
        states: dict[int, dict[str, Any]] = {}
        while True:
            if stop_requested():
                raise Stopped("it was told to stop")
            read = self._mailbox.read(timeout_s=0.2)
            if read is None:
                self._check_alive()
                if (seen := self._states()) != states:
                    moved_at, states = time.monotonic(), seen
                self._check_progress(states, time.monotonic() - moved_at)
                continue
            message, payload = read
            if message.pop("number") != number:
                continue  # what is left of a job that was given up
            match message.pop("kind"):
                case "progress":
                    moved_at = time.monotonic()
                    on_progress(Progress(**message))
                case "done":
                    return [RankReport(**report) for report in message["reports"]]
                case "stopped":
                    return Stopped(message["text"])
                case "refused":
                    return refusal_of(message["type"], message["text"])
                case kind:
                    assert sink is not None
                    flat = np.frombuffer(payload, dtype=np.float32).copy()
                    array = flat.reshape(message.pop("shape"))
                    if kind == "latents":
                        sink.latents(array)
                    elif kind == "frame":
                        sink.frame(message["video"], message["index"], array)
                    elif isinstance(sink, TraceSink):  # else the job was given up
                        sink.traced(TracePoint(**message["point"]), array)

    def _states(self) -> dict[int, dict[str, Any]]:
        """What each rank last said of its progress."""
        keys = {rank: f"state/{rank}" for rank in range(self._config.devices)}
        return {
            rank: json.loads(self._store.get(key))
            for rank, key in keys.items()
            if self._store.check([key])
        }

    def _check_alive(self) -> None:
        """End all ranks and raise what ended one of them, if one has ended or stands still."""
        assert self._processes is not None
        if len(self._processes.running()) == self._config.devices:
            self._check_suspended()
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
                self._kill()
                raise refusal_of(failure["type"], failure["text"])
        exits = self._processes.exit_codes()
        silent = [rank for rank in exits if rank not in failures]
        failed = [rank for rank in exits if failures.get(rank, {}).get("kind") in _FIRST_CAUSES]
        first = silent or failed or list(exits)
        rank = first[0]
        failure = failures.get(rank)
        text = self._obituary(rank, exits[rank], failure)
        error = self._lost(text, rank)
        if len(first) > 1:  # what several do alike is no one rank's fault
            error.rank = None
        error.out_of_memory = failure is not None and failure["kind"] == "out of memory"
        raise error

    def _check_suspended(self) -> None:
        """A suspended process does not end, nor does it notice its own deadline."""
        assert self._processes is not None
        suspended, now = self._processes.suspended(), time.monotonic()
        if not suspended:
            self._suspended_since = None
            self._check_signs(now)
            return
        if self._suspended_since is None:
            self._suspended_since = now
        if now - self._suspended_since > 0.8 * self._config.rank_loss_timeout_s:
            names = ", ".join(map(str, suspended))
            raise self._lost(
                f"rank {names} was suspended (SIGSTOP, or a debugger) for "
                f"{now - self._suspended_since:.0f} s; all ranks were ended",
                suspended[0],
            )

    def _check_signs(self, now: float) -> None:
        """A process can stand still that is neither suspended nor, in its own eyes, late."""
        beats = {
            rank: self._store.get(key)
            for rank in range(self._config.devices)
            if self._store.check([key := f"beat/{rank}"])
        }
        for rank, silent_s in self._signs.silent(beats, now).items():
            # While libraries and weights are loaded a thread may have to wait for long.
            loads = self._states().get(rank, {}).get("phase") in (None, "loading")
            if silent_s > 0.8 * self._config.rank_loss_timeout_s and not loads:
                raise self._lost(
                    f"rank {rank} gave no sign of life for {silent_s:.0f} s; all ranks were ended",
                    rank,
                )

    def _check_progress(self, states: dict[int, dict[str, Any]], idle_s: float) -> None:
        """Ranks end themselves at their deadlines; where none can, here."""
        timeouts = [state["timeout_s"] for state in states.values() if state["timeout_s"]]
        allowed = max(timeouts, default=self._config.load_timeout_s)
        if idle_s > allowed + self._config.rank_loss_timeout_s:
            raise self._lost(
                f"no rank made progress for {idle_s:.0f} s, {allowed:.0f} s were allowed: all were "
                "ended; see what holds them up, or raise the timeout"
            )

    def _lost(self, text: str, rank: int | None = None) -> RankError:
        error = RankError(text)
        error.rank = rank
        if rank is not None:
            error.phase = self._states().get(rank, {}).get("phase", "starting")
        self._kill()
        return error

    def _obituary(self, rank: int, code: int, failure: dict[str, Any] | None) -> str:
        assert self._processes is not None
        states, log = self._states(), self._processes.last_lines(rank)
        state = states.get(rank, {})
        where = state.get("phase", "starting").replace("waiting", "decoding")
        if state.get("total"):
            where += f", {state['done']} of {state['total']} done"
        if failure is not None:
            how = f"failed: {failure['type']}: {failure['text']}"
        elif any(TIMED_OUT in line for line in log):
            how = f"made no progress for {state.get('timeout_s', 0):.0f} s and was ended"
            running = [str(other) for other in self._processes.running()]
            how += f" (rank {', '.join(running)} had not ended)" if running else ""
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = "died"
        lines = "".join(f"\n  {line}" for line in log[-_LOG_LINES:])
        said = f"; its last lines:{lines}" if lines else "; it said nothing"
        return f"rank {rank} {how} (exit code {code}, {where}); all ranks were ended{said}"

    def _stop(self, number: int, why: BaseException) -> None:
        """Have the ranks stop between steps; kill them if they do not in time.

        Args:
            why: its attribute ``again``, of Ctrl-C, becomes true if the user is in a hurry.
        """
        timeout_s = self._config.stop_timeout_s
        deadline = time.monotonic() + timeout_s

        def late() -> bool:
            if time.monotonic() > deadline:
                raise RankError(f"they did not stop within {timeout_s:g} s")
            return getattr(why, "again", False)

        try:
            self._store.set(f"stop/{number}", "1")
            self._receive(number, lambda progress: None, NullSink(), late)
        except Stopped:
            self._kill()
        except BaseException as error:
            logger.warning("the ranks were ended in the middle of a step: %s", one_line(error))
            self._kill()

    def _kill(self) -> None:
        if self._processes is not None:
            self._processes.kill()
            self._processes = None
