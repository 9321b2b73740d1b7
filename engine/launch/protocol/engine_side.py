"""The engine's side of the protocol. How processes are started and killed is up to the launcher."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch.distributed as dist

from longtake.configs.engine import EngineConfig
from longtake.engine.job import Job, JobInputs, refusal_of
from longtake.engine.launch.protocol import messages
from longtake.engine.launch.protocol.channel import Mailbox
from longtake.engine.launch.protocol.heartbeat import HeartbeatMonitor, read_heartbeats
from longtake.engine.launch.protocol.messages import RankFailure, RankState
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.media.sinks import Sink, TraceSink
from longtake.engine.rank_report import RankReport
from longtake.errors import LongtakeError, RankError, Stopped
from longtake.pipelines.runtime.progress import OnProgress, Progress, StopRequested
from longtake.pipelines.runtime.trace_points import TracePoint

_RESULTS = ("done", "stopped", "refused")

_SILENCE_SHARE = 0.8
"""Share of ``rank_loss_timeout_s`` after which a silent rank counts as lost; the rest is for ending
all ranks."""


class EngineSide:
    """The engine's side of the protocol.

    Args:
        store: Store that the ranks connect to, new for each start of the ranks.
        config: The engine's configuration.
        device_type: "cpu" or "cuda".
        loras: LoRAs that are fused while the model loads.
    """

    def __init__(
        self,
        store: dist.Store,
        config: EngineConfig,
        device_type: str,
        loras: LoraChoice = NO_LORAS,
    ) -> None:
        self._store = store
        self._config = config
        self._output = Mailbox(store, messages.OUTPUT)
        self._jobs = Mailbox(store, messages.JOBS, keep=True)
        self._job_inputs = Mailbox(store, messages.JOB_INPUTS)
        self._heartbeats = HeartbeatMonitor(config.devices)
        self._last_number = messages.LOADING
        self._last_states: dict[int, RankState] = {}
        self._moved_at = time.monotonic()
        store.set(messages.CONFIG, config.model_dump_json())
        store.set(messages.DEVICE_TYPE, device_type)
        store.set(messages.LORAS, loras.model_dump_json())

    def next_number(self) -> int:
        """A number for the next job."""
        self._last_number += 1
        return self._last_number

    def submit(self, number: int, job: Job, inputs: JobInputs) -> None:
        """Send a job and its inputs to the ranks."""
        for name, array in inputs.items():
            described = {"name": name, "shape": array.shape, "dtype": str(array.dtype)}
            self._job_inputs.post({"number": number, **described}, array.tobytes())
        self._jobs.post({"kind": "render", "number": number, "job": job.model_dump(mode="json")})

    def request_stop(self, number: int) -> None:
        """Ask the ranks to stop a job between steps."""
        self._store.set(messages.stop_key(number), "1")

    def request_exit(self) -> None:
        """Ask the ranks to end."""
        self._jobs.post({"kind": "exit"})

    def receive(
        self,
        number: int,
        sink: Sink,
        on_progress: OnProgress,
        stop_requested: StopRequested,
        check_ranks: Callable[[], None],
    ) -> list[RankReport] | LongtakeError:
        """Receive a job's output until its result arrives.

        Args:
            number: Number of the job, or messages.LOADING.
            sink: Receives the output.
            on_progress: Called with rank 0's progress.
            stop_requested: Polled.
            check_ranks: Called while nothing arrives; raises if a rank is lost.

        Returns:
            What each rank measured, or the error with which all ranks refused or stopped the job.

        Raises:
            Stopped: ``stop_requested`` returned true. The ranks do not know yet.
        """
        self._moved_at, self._last_states = time.monotonic(), {}
        while True:
            if stop_requested():
                raise Stopped("stop requested")
            received = self._output.read(timeout_s=0.2)
            if received is None:
                check_ranks()
                continue
            message, payload = received
            if message.pop("number") != number:
                continue  # left over from an abandoned job
            kind = message.pop("kind")
            if kind == "progress":
                self._moved_at = time.monotonic()
                on_progress(Progress(**message))
            elif kind in _RESULTS:
                return _result(kind, message)
            else:
                _deliver(sink, kind, message, payload)

    def states(self) -> dict[int, RankState]:
        """The last state by rank, of the ranks that have reported one."""
        return {
            rank: RankState(Progress(**state.pop("progress")), **state)
            for rank, state in self._read_json(messages.STATE).items()
        }

    def failures(self) -> dict[int, RankFailure]:
        """Why ranks ended, by rank, as far as they reported it."""
        return {
            rank: RankFailure(**each) for rank, each in self._read_json(messages.FAILURE).items()
        }

    def check_heartbeats(self) -> None:
        """Raise if a rank is silent: a process can hang without being suspended or late.

        Raises:
            RankError: A rank has sent no heartbeat for too long.
        """
        heartbeats = read_heartbeats(self._store, self._config.devices)
        states = self.states()
        for rank, silent_s in self._heartbeats.silent_s(heartbeats, time.monotonic()).items():
            # While libraries and weights load, the heartbeat's thread may have to wait for long.
            loading = rank not in states or states[rank].progress.phase == "loading"
            if silent_s > _SILENCE_SHARE * self._config.rank_loss_timeout_s and not loading:
                raise self.rank_error(
                    f"rank {rank} sent no heartbeat for {silent_s:.0f} s; all ranks were ended",
                    rank,
                )

    def check_progress(self) -> None:
        """Raise if no rank has made progress in time: some may be unable to end themselves.

        Raises:
            RankError: As :func:`check_idle`.
        """
        states = self.states()
        if states != self._last_states:
            self._moved_at, self._last_states = time.monotonic(), states
        check_idle(self._config, states, time.monotonic() - self._moved_at)

    def rank_error(self, message: str, rank: int) -> RankError:
        """A RankError that names the rank and its phase."""
        error = RankError(message)
        error.rank = rank
        state = self.states().get(rank)
        error.phase = "starting" if state is None else state.progress.phase
        return error

    def _read_json(self, name: str) -> dict[int, dict[str, Any]]:
        """A value that each rank sets, by rank."""
        keys = {rank: messages.rank_key(name, rank) for rank in range(self._config.devices)}
        return {
            rank: json.loads(self._store.get(key))
            for rank, key in keys.items()
            if self._store.check([key])
        }


def check_idle(config: EngineConfig, states: dict[int, RankState], idle_s: float) -> None:
    """Raise if all ranks have been idle for longer than any of them may be.

    Args:
        config: The engine's configuration.
        states: The last state by rank.
        idle_s: Seconds since the last progress of any rank.

    Raises:
        RankError: The ranks neither made progress nor ended.
    """
    timeouts = [state.timeout_s for state in states.values() if state.timeout_s]
    allowed_s = max(timeouts, default=config.load_timeout_s)
    if idle_s > allowed_s + config.rank_loss_timeout_s:
        raise RankError(
            f"no rank made progress for {idle_s:.0f} s, {allowed_s:.0f} s were allowed: all were "
            "ended; find out why, or raise the timeout"
        )


def _result(kind: str, message: dict[str, Any]) -> list[RankReport] | LongtakeError:
    """The result that :meth:`RankSide.report_done` or :meth:`RankSide.report_error` posted."""
    if kind == "done":
        return [RankReport(**report) for report in message["reports"]]
    if kind == "stopped":
        return Stopped(message["text"])
    return refusal_of(message["type"], message["text"])


def _deliver(sink: Sink, kind: str, message: dict[str, Any], payload: bytes) -> None:
    """Hand what :class:`RankSink` sent to the engine's sink."""
    array = np.frombuffer(payload, dtype=np.float32).copy().reshape(message["shape"])
    if kind == "latents":
        sink.latents(array)
    elif kind == "frame":
        sink.frame(message["video"], message["index"], array)
    elif isinstance(sink, TraceSink):  # an abandoned job had another sink
        sink.traced(TracePoint(**message["point"]), array)
