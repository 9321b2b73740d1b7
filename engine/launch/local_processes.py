"""Ranks as processes on this machine, watched and ended together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path

import torch.distributed as dist

from longtake.configs.engine import EngineConfig
from longtake.engine.job import JobRun, refusal_of
from longtake.engine.launch.launcher import Launcher
from longtake.engine.launch.local_rendezvous import LocalEnvironment, listen_locally
from longtake.engine.launch.protocol.deadlines import TIMED_OUT
from longtake.engine.launch.protocol.engine_side import EngineSide
from longtake.engine.launch.protocol.messages import LOADING, RankFailure, RankState
from longtake.engine.launch.rank_processes import RankProcesses
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.media.sinks import NullSink, Sink
from longtake.engine.rank_report import RankReport
from longtake.errors import LongtakeError, RankError, Stopped, one_line
from longtake.pipelines.runtime.progress import OnProgress, StopRequested, never

logger = logging.getLogger(__name__)

_LOG_LINES = 12
_FIRST_CAUSES = ("failed", "out of memory")
_SUSPENDED_SHARE = 0.8
"""Share of ``rank_loss_timeout_s`` after which a suspended rank counts as lost."""


class LocalProcesses(Launcher):
    """Ranks as processes on this machine, which stay alive between jobs.

    They listen on localhost only. All of them are ended when one dies, is suspended, sends no
    heartbeat, makes no progress in time, or does not stop in time.

    Args:
        config: The engine's configuration.
        device_type: "cpu" or "cuda".
        scratch: Folder for the ranks' logs; the system's temporary folder if None.
    """

    def __init__(self, config: EngineConfig, device_type: str, scratch: Path | None = None) -> None:
        self._config = config
        self._device_type = device_type
        self._scratch = scratch
        self._suspended_since: float | None = None
        self._processes: RankProcesses | None = None

    def start(
        self,
        on_progress: OnProgress,
        stop_requested: StopRequested = never,
        loras: LoraChoice = NO_LORAS,
    ) -> None:
        """Start the processes; returns when all have loaded the model."""
        store = listen_locally()
        self._ranks = EngineSide(store, self._config, self._device_type, loras)
        environments = {
            rank: self._environment(rank, store.port) for rank in range(self._config.devices)
        }
        self._processes = RankProcesses(
            "longtake.engine.launch.local_rank", environments, self._scratch
        )
        try:
            self._receive(LOADING, NullSink(), on_progress, stop_requested)
        except BaseException:
            self._kill()
            raise

    def render(self, run: JobRun) -> list[RankReport]:
        """Render on the processes."""
        number = self._ranks.next_number()
        try:
            self._ranks.submit(number, run.job, run.inputs)
            result = self._receive(number, run.sink, run.on_progress, run.stop_requested)
        except BaseException as error:
            if self.alive:  # the caller's error, a stop, or Ctrl-C
                self._stop(number, error)
            raise
        if isinstance(result, LongtakeError):
            raise result
        return result

    @property
    def alive(self) -> bool:
        """Whether the processes run."""
        return self._processes is not None

    def close(self) -> None:
        """Ask the processes to end; kill those that do not."""
        if self._processes is not None:
            with contextlib.suppress(dist.DistError):
                self._ranks.request_exit()
            deadline = time.monotonic() + self._config.rank_loss_timeout_s / 2
            while self._processes.running() and time.monotonic() < deadline:
                time.sleep(0.02)
        self._kill()

    def _environment(self, rank: int, port: int) -> dict[str, str]:
        devices = self._config.devices
        environment = {
            **LocalEnvironment(rank, devices, port, os.getpid()).variables(),
            "LONGTAKE_DEVICE": str(self._config.devices_by_rank[rank]),
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        }
        if self._device_type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // devices))
        return environment

    def _receive(
        self, number: int, sink: Sink, on_progress: OnProgress, stop_requested: StopRequested
    ) -> list[RankReport] | LongtakeError:
        """See :meth:`EngineSide.receive`; what it raises for lost ranks has ended all of them."""
        self._suspended_since = None
        return self._ranks.receive(number, sink, on_progress, stop_requested, self._check_ranks)

    def _check_ranks(self) -> None:
        """End all ranks and raise the cause if one has ended or hangs.

        Raises:
            RankError: A rank died or hangs.
            RefusedInputError: A rank ended because it refused the input.
        """
        assert self._processes is not None
        try:
            if len(self._processes.running()) < self._config.devices:
                raise self._first_cause()
            if not self._suspended(self._processes.suspended()):
                self._ranks.check_heartbeats()
            self._ranks.check_progress()
        except LongtakeError:
            self._kill()
            raise

    def _first_cause(self) -> LongtakeError:
        """The error of the rank that ended first, as far as known."""
        assert self._processes is not None
        # Other ranks report the loss a moment later. The reports tell the cause from its effects.
        time.sleep(min(1.0, self._config.rank_loss_timeout_s / 10))
        failures = self._ranks.failures()
        for each in failures.values():
            if each.kind == "refused":
                return refusal_of(each.type_name, each.message)
        exit_codes = self._processes.exit_codes()
        unexplained = [rank for rank in exit_codes if rank not in failures]
        failed = [
            rank for rank in exit_codes if rank in failures and failures[rank].kind in _FIRST_CAUSES
        ]
        first = unexplained or failed or list(exit_codes)
        rank, failure = first[0], failures.get(first[0])
        error = self._ranks.rank_error(self._description(rank, exit_codes[rank], failure), rank)
        if len(first) > 1:  # the same on several ranks is no one rank's fault
            error.rank = None
        error.out_of_memory = failure is not None and failure.kind == "out of memory"
        return error

    def _suspended(self, suspended: list[int]) -> bool:
        """Whether ranks are suspended; a suspended process misses its own deadline.

        Raises:
            RankError: They have been suspended for too long.
        """
        if not suspended:
            self._suspended_since = None
            return False
        now = time.monotonic()
        if self._suspended_since is None:
            self._suspended_since = now
        if now - self._suspended_since > _SUSPENDED_SHARE * self._config.rank_loss_timeout_s:
            names = ", ".join(map(str, suspended))
            raise self._ranks.rank_error(
                f"rank {names} was suspended (SIGSTOP, or a debugger) for "
                f"{now - self._suspended_since:.0f} s; all ranks were ended",
                suspended[0],
            )
        return True

    def _description(self, rank: int, exit_code: int, failure: RankFailure | None) -> str:
        """How a rank ended, where in the job, and its last log lines."""
        assert self._processes is not None
        log = self._processes.last_lines(rank)
        state = self._ranks.states().get(rank)
        if failure is not None:
            how = f"failed: {failure.type_name}: {failure.message}"
        elif any(TIMED_OUT in line for line in log):
            timeout_s = 0 if state is None else state.timeout_s or 0
            how = f"made no progress for {timeout_s:.0f} s and was ended"
            running = [str(other) for other in self._processes.running()]
            how += f" (rank {', '.join(running)} had not ended)" if running else ""
        elif exit_code < 0:
            how = f"was killed by {signal.Signals(-exit_code).name}"
        else:
            how = "died"
        lines = "".join(f"\n  {line}" for line in log[-_LOG_LINES:])
        output = f"; its last lines:{lines}" if lines else "; it wrote no log"
        return (
            f"rank {rank} {how} (exit code {exit_code}, {_position(state)}); all ranks were "
            f"ended{output}"
        )

    def _stop(self, number: int, reason: BaseException) -> None:
        """Stop the ranks between steps; kill them if they do not stop in time.

        Args:
            number: The job's number.
            reason: Why they stop. Its attribute ``again``, which a second Ctrl-C sets, kills them.
        """
        timeout_s = self._config.stop_timeout_s
        deadline = time.monotonic() + timeout_s

        def stop_waiting() -> bool:
            if time.monotonic() > deadline:
                raise RankError(f"they did not stop within {timeout_s:g} s")
            return getattr(reason, "again", False)

        try:
            self._ranks.request_stop(number)
            self._receive(number, NullSink(), lambda progress: None, stop_waiting)
        except Stopped:
            self._kill()
        except BaseException as error:
            logger.warning("the ranks were ended in the middle of a step: %s", one_line(error))
            self._kill()

    def _kill(self) -> None:
        if self._processes is not None:
            self._processes.kill()
            self._processes = None


def _position(state: RankState | None) -> str:
    """The phase of a rank, and how much of it is done."""
    if state is None:
        return "starting"
    phase = state.progress.phase.replace("waiting", "decoding")
    if not state.progress.total:
        return phase
    return f"{phase}, {state.progress.done} of {state.progress.total} done"
