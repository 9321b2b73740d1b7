"""The protocol between an engine and its ranks over a key-value store, for any launcher.

The engine sends its config, jobs, job inputs, stop requests and the request to exit. Ranks send
their progress, heartbeats and failures; rank 0 sends the output and the result of each job. How
processes are started, watched and killed is up to the launcher.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch.distributed as dist

from longtake.configs.engine import EngineConfig
from longtake.engine.job import Job, JobInput, refusal_of
from longtake.engine.launch.protocol.channel import Mailbox
from longtake.engine.launch.protocol.heartbeat import HeartbeatMonitor, read_heartbeats
from longtake.engine.media.arrays import Array
from longtake.engine.media.sinks import Sink, TraceSink
from longtake.engine.memory_use import is_out_of_memory
from longtake.engine.rank_report import RankReport
from longtake.errors import (
    LongtakeError,
    PeerLostError,
    RankError,
    RefusedInputError,
    Stopped,
    one_line,
)
from longtake.pipelines.progress import OnProgress, Progress, StopRequested
from longtake.pipelines.trace_points import TracePoint

LOADING = 0
"""Job number while the model loads; jobs are numbered from 1."""

_CONFIG, _DEVICE_TYPE = "config", "device"
_OUTPUT, _JOBS, _JOB_INPUTS = "output", "jobs", "job_inputs"
_RESULTS = ("done", "stopped", "refused")
_MAX_UNREAD = 32
_MAX_UNREAD_TRACED = 2
"""Fewer than frames: a block's output has the size of the whole video in the model's width."""

_SILENCE_SHARE = 0.8
"""Share of ``rank_loss_timeout_s`` after which a silent rank counts as lost; the rest is for ending
all ranks."""


@dataclass(frozen=True)
class RankState:
    """The last progress of a rank.

    Attributes:
        progress: The progress.
        timeout_s: Seconds the rank has until its next progress; None: no limit.
        reported_at: Time of the report in seconds since the epoch, which makes each one unique.
    """

    progress: Progress
    timeout_s: float | None
    reported_at: float


@dataclass(frozen=True)
class RankFailure:
    """Why a rank ended.

    Attributes:
        kind: "refused": the input cannot run; "lost": the rank missed another one.
        type_name: Name of the exception's class.
        message: The exception's message on one line.
    """

    kind: Literal["refused", "lost", "out of memory", "failed"]
    type_name: str
    message: str


def report_failure(store: dist.Store, rank: int, error: BaseException) -> None:
    """Tell the engine why this rank ends."""
    kind: Literal["refused", "lost", "out of memory", "failed"] = "failed"
    if is_out_of_memory(error):
        kind = "out of memory"
    elif isinstance(error, RefusedInputError):
        kind = "refused"
    elif isinstance(error, PeerLostError):
        kind = "lost"
    failure = RankFailure(kind, type(error).__name__, one_line(error))
    store.set(f"failure/{rank}", json.dumps(asdict(failure)))


class EngineSide:
    """The engine's side of the protocol.

    Args:
        store: Store that the ranks connect to, new for each start of the ranks.
        config: The engine's configuration.
        device_type: "cpu" or "cuda".
    """

    def __init__(self, store: dist.Store, config: EngineConfig, device_type: str) -> None:
        self._store = store
        self._config = config
        self._output = Mailbox(store, _OUTPUT)
        self._jobs = Mailbox(store, _JOBS, keep=True)
        self._job_inputs = Mailbox(store, _JOB_INPUTS)
        self._heartbeats = HeartbeatMonitor(config.devices)
        self._last_number = LOADING
        self._last_states: dict[int, RankState] = {}
        self._moved_at = time.monotonic()
        store.set(_CONFIG, config.model_dump_json())
        store.set(_DEVICE_TYPE, device_type)

    def next_number(self) -> int:
        """A number for the next job."""
        self._last_number += 1
        return self._last_number

    def submit(self, number: int, job: Job, job_input: JobInput) -> None:
        """Send a job and its input to the ranks."""
        if job_input is not None:
            described = {"shape": job_input.shape, "dtype": str(job_input.dtype)}
            self._job_inputs.post({"number": number, **described}, job_input.tobytes())
        self._jobs.post({"kind": "render", "number": number, "job": job.model_dump(mode="json")})

    def request_stop(self, number: int) -> None:
        """Ask the ranks to stop a job between steps."""
        self._store.set(_stop_key(number), "1")

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
            number: Number of the job, or LOADING.
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
                raise Stopped("it was told to stop")
            received = self._output.read(timeout_s=0.2)
            if received is None:
                check_ranks()
                continue
            message, payload = received
            if message.pop("number") != number:
                continue  # left over from a job that was given up
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
            for rank, state in self._read_json("state").items()
        }

    def failures(self) -> dict[int, RankFailure]:
        """Why ranks ended, by rank, as far as they could say so."""
        return {rank: RankFailure(**each) for rank, each in self._read_json("failure").items()}

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
                    f"rank {rank} gave no sign of life for {silent_s:.0f} s; all ranks were ended",
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
        keys = {rank: f"{name}/{rank}" for rank in range(self._config.devices)}
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
            "ended; see what holds them up, or raise the timeout"
        )


class RankSide:
    """A rank's side of the protocol.

    Args:
        store: Connection to the engine's store.
        rank: This process's rank.

    Attributes:
        config: The engine's configuration.
        device_type: "cpu" or "cuda".
    """

    def __init__(self, store: dist.Store, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._output = Mailbox(store, _OUTPUT)
        self._jobs = Mailbox(store, _JOBS, keep=True)
        self._job_inputs = Mailbox(store, _JOB_INPUTS)
        self._number = LOADING
        self.config = EngineConfig.model_validate_json(store.get(_CONFIG))
        self.device_type = store.get(_DEVICE_TYPE).decode()

    def next_job(self) -> Job | None:
        """Wait for the next job; None if the rank is to end."""
        while (received := self._jobs.read(timeout_s=1.0)) is None:
            pass
        message = received[0]
        if message["kind"] == "exit":
            return None
        self._number = message["number"]
        return Job.model_validate(message["job"])

    def job_input(self) -> JobInput:
        """The input of the current job, on rank 0; those of jobs given up before are skipped."""
        while True:
            received = self._job_inputs.read(timeout_s=1.0)
            if received is None or received[0]["number"] != self._number:
                continue
            description, payload = received
            flat = np.frombuffer(payload, dtype=np.dtype(description["dtype"]))
            array: JobInput = flat.reshape(tuple(description["shape"])).copy()
            return array

    def stop_requested(self) -> bool:
        """Whether the engine asked to stop the current job; only rank 0 answers yes."""
        return self._rank == 0 and bool(self._store.check([_stop_key(self._number)]))

    def report_progress(self, progress: Progress, timeout_s: float | None) -> None:
        """Set this rank's state; rank 0 also posts its progress."""
        state = RankState(progress, timeout_s, time.time())
        self._store.set(f"state/{self._rank}", json.dumps(asdict(state)))
        if self._rank == 0:
            self.post({"kind": "progress", **asdict(progress)})

    def report_done(self, reports: list[RankReport]) -> None:
        """Post a job's result, on rank 0."""
        self._report_result({"kind": "done", "reports": [asdict(each) for each in reports]})

    def report_error(self, error: Stopped | RefusedInputError) -> None:
        """Post that all ranks stopped or refused the current job, on rank 0."""
        if isinstance(error, Stopped):
            self._report_result({"kind": "stopped", "text": str(error)})
        else:
            name = type(error).__name__
            self._report_result({"kind": "refused", "type": name, "text": str(error)})

    def post(self, message: dict[str, Any], payload: bytes = b"", max_unread: int = 0) -> None:
        """Post a message about the current job; see :meth:`Mailbox.post`."""
        self._output.post({**message, "number": self._number}, payload, max_unread)

    def _report_result(self, message: dict[str, Any]) -> None:
        if self._rank == 0:
            self.post(message)


class RankSink:
    """A sink that sends a rendering to the engine.

    Args:
        rank_side: Rank 0's side of the protocol.
    """

    def __init__(self, rank_side: RankSide) -> None:
        self._rank_side = rank_side

    def latents(self, latents: Array) -> None:
        """Send the latents."""
        self._send({"kind": "latents"}, latents, _MAX_UNREAD)

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Send the frame."""
        self._send({"kind": "frame", "video": video, "index": index}, frame, _MAX_UNREAD)

    def traced(self, point: TracePoint, values: Array) -> None:
        """Send the traced values."""
        self._send({"kind": "traced", "point": asdict(point)}, values, _MAX_UNREAD_TRACED)

    def _send(self, message: dict[str, Any], array: Array, max_unread: int) -> None:
        payload = np.ascontiguousarray(array, dtype=np.float32).tobytes()
        self._rank_side.post({**message, "shape": array.shape}, payload, max_unread)


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
    elif isinstance(sink, TraceSink):  # a job that was given up has another sink
        sink.traced(TracePoint(**message["point"]), array)


def _stop_key(number: int) -> str:
    return f"stop/{number}"
