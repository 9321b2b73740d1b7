"""A rank's side of the protocol."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from longtake.configs.engine import EngineConfig
from longtake.engine.job import Job, JobInputs
from longtake.engine.launch.protocol import messages
from longtake.engine.launch.protocol.channel import Mailbox
from longtake.engine.launch.protocol.messages import FailureKind, RankFailure, RankState
from longtake.engine.loras.choice import LoraChoice
from longtake.engine.media.arrays import Array
from longtake.engine.memory_use import is_out_of_memory
from longtake.engine.rank_report import RankReport
from longtake.errors import PeerLostError, RefusedInputError, Stopped, one_line
from longtake.pipelines.runtime.progress import Progress
from longtake.pipelines.runtime.trace_points import TracePoint

_MAX_UNREAD = 32
_MAX_UNREAD_TRACED = 2
"""Fewer than frames, since a block's output covers the whole video in the model's width."""


class RankSide:
    """A rank's side of the protocol.

    Args:
        store: Connection to the engine's store.
        rank: This process's rank.

    Attributes:
        config: The engine's configuration.
        device_type: "cpu" or "cuda".
        loras: LoRAs that are fused while the model loads.
    """

    def __init__(self, store: dist.Store, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._output = Mailbox(store, messages.OUTPUT)
        self._jobs = Mailbox(store, messages.JOBS, keep=True)
        self._job_inputs = Mailbox(store, messages.JOB_INPUTS)
        self._number = messages.LOADING
        self.config = EngineConfig.model_validate_json(store.get(messages.CONFIG))
        self.device_type = store.get(messages.DEVICE_TYPE).decode()
        self.loras = LoraChoice.model_validate_json(store.get(messages.LORAS))

    def next_job(self) -> Job | None:
        """Wait for the next job; None if the rank is to end."""
        while (received := self._jobs.read(timeout_s=1.0)) is None:
            pass
        message = received[0]
        if message["kind"] == "exit":
            return None
        self._number = message["number"]
        return Job.model_validate(message["job"])

    def inputs_of(self, job: Job) -> JobInputs:
        """The inputs of the current job, on rank 0. Inputs of abandoned jobs are skipped."""
        inputs: dict[str, npt.NDArray[Any]] = {}
        while len(inputs) < len(job.inputs):
            received = self._job_inputs.read(timeout_s=1.0)
            if received is None or received[0]["number"] != self._number:
                continue
            description, payload = received
            flat = np.frombuffer(payload, dtype=np.dtype(description["dtype"]))
            inputs[description["name"]] = flat.reshape(tuple(description["shape"])).copy()
        return inputs

    def stop_requested(self) -> bool:
        """Whether the engine requested a stop of the current job; false on all ranks but 0."""
        return self._rank == 0 and bool(self._store.check([messages.stop_key(self._number)]))

    def report_progress(self, progress: Progress, timeout_s: float | None) -> None:
        """Set this rank's state; rank 0 also posts its progress."""
        state = RankState(progress, timeout_s, time.time())
        self._store.set(messages.rank_key(messages.STATE, self._rank), json.dumps(asdict(state)))
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


def report_failure(store: dist.Store, rank: int, error: BaseException) -> None:
    """Set why this rank ends, for :meth:`EngineSide.failures`."""
    kind: FailureKind = "failed"
    if is_out_of_memory(error):
        kind = "out of memory"
    elif isinstance(error, RefusedInputError):
        kind = "refused"
    elif isinstance(error, PeerLostError):
        kind = "lost"
    failure = RankFailure(kind, type(error).__name__, one_line(error))
    store.set(messages.rank_key(messages.FAILURE, rank), json.dumps(asdict(failure)))
