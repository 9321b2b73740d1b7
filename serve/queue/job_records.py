"""The records of the queue: new jobs, stored jobs, and their events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from longtake.configs.request import ResolvedRequest
from longtake.serve.queue.process_identity import Owner

State = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class NewJob:
    """A job to add to the queue.

    Attributes:
        id: Unique ID.
        source: Origin of the job: the path of a shots file, or ``serve`` and a key's label.
        position: Place in the queue; jobs are rendered in ascending order.
        output: Output path, relative to the output folder.
        engine: Digest of the engine that renders the job; other engines do not claim it.
        request: The request to render.
        fingerprint: Digest of everything that determines the output. A job whose fingerprint
            changes is rendered again.
        model: ``NAME@FINGERPRINT`` of the served model; empty in a batch.
    """

    id: str
    source: str
    position: int
    output: str
    engine: str
    request: ResolvedRequest
    fingerprint: str
    model: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class JobRecord(NewJob):
    """A job as stored in the queue. Times are in seconds since 1970.

    Attributes:
        claims: Number of attempts so far.
        faults: Consecutive faults without progress.
        fault_step: Denoising step from which the job could resume at its last fault.
        not_before: Earliest time of the next attempt.
        cancelling: Whether cancellation was requested.
        low_memory: Whether the job is decoded with minimal memory.
        owner: The worker that has claimed the job.
        lease_until: End of the claim's lease.
        phase: Current phase of rendering.
        steps_done: Finished denoising steps.
        queued_at: Time of queueing.
        started_at: Start of the last attempt.
        ended_at: End of the last attempt.
        seconds: Duration of each stage.
        error: Message of the last fault, or the reason for cancellation.
        deleted: Whether the job was deleted. Its record is removed after it has ended.
    """

    state: State
    claims: int
    faults: int
    fault_step: int
    not_before: float
    cancelling: bool
    low_memory: bool
    owner: Owner | None
    lease_until: float
    phase: str
    steps_done: int
    queued_at: float
    started_at: float | None
    ended_at: float | None
    seconds: dict[str, float]
    error: str
    deleted: bool = field(default=False, kw_only=True)

    @property
    def ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.state not in ("queued", "running")


@dataclass(frozen=True, kw_only=True)
class DoneJob(NewJob):
    """A finished job to add to the queue. Times are in seconds since 1970.

    Attributes:
        claims: Number of attempts; 0 if unknown.
        queued_at: Time of queueing.
        started_at: Start of the last attempt.
        ended_at: End of the last attempt.
        seconds: Duration of each stage.
    """

    claims: int
    queued_at: float
    started_at: float
    ended_at: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Event:
    """An entry in the history of a job.

    Attributes:
        at: Time, in seconds since 1970.
        kind: What happened.
        text: Details.
    """

    at: float
    kind: str
    text: str
