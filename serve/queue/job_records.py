"""What a queue of jobs holds of each: as it is added, and as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from longtake.configs.request import ResolvedRequest
from longtake.serve.queue.process_identity import Owner

State = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class NewJob:
    """A job that is to be queued.

    Attributes:
        id: by which it is known.
        source: file that it comes from.
        position: in the order of the queue.
        output: path in the folder.
        engine: digest of what renders it; no other engine may take it.
        request: that is rendered.
        fingerprint: of all that its output follows from; another one means that it is rendered
            again.
        model: as whoever asked for it knows it.
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
    """A job as the queue holds it.

    Attributes:
        claims: how often it was begun.
        faults: that ended it since it last got further.
        fault_step: finished steps that it could go on from at the last fault.
        not_before: seconds since 1970.
        cancelling: it was asked to end.
        low_memory: it is decoded with as little memory as can be.
        owner: that works on it.
        phase, steps_done: where it stands.
        queued_at, started_at, ended_at: seconds since 1970.
        seconds: that each stage took.
        error: of the last fault, or why it was cancelled.
        deleted: nobody asks for it any more; it goes once it has ended.
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
        """Whether nothing is left to be done."""
        return self.state not in ("queued", "running")


@dataclass(frozen=True, kw_only=True)
class DoneJob(NewJob):
    """A job that was done before it came into a queue.

    Attributes:
        claims: how often it was begun; 0: that is not known.
        queued_at, started_at, ended_at: seconds since 1970.
        seconds: that each stage took.
    """

    claims: int
    queued_at: float
    started_at: float
    ended_at: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    at: float
    kind: str
    text: str


def record_of(row: dict[str, Any]) -> JobRecord:
    """A job from its row of the database, whose column ``sparing`` is :attr:`low_memory`."""
    fields = dict(row)
    low_memory = bool(fields.pop("sparing"))
    return JobRecord(
        **{
            **fields,
            "request": ResolvedRequest.model_validate_json(row["request"]),
            "owner": row["owner"] and Owner.model_validate_json(row["owner"]),
            "seconds": json.loads(row["seconds"]),
            "cancelling": bool(row["cancelling"]),
            "low_memory": low_memory,
            "deleted": bool(row.get("deleted")),
        }
    )


def kind_of(job: NewJob, known: JobRecord | None, is_there: Callable[[JobRecord], bool]) -> str:
    """What a job that is to be queued is to the queue; see :meth:`JobStore.enqueue`."""
    if known is None:
        return "new"
    if known.fingerprint != job.fingerprint or known.output != job.output:
        return "changed"
    gone = known.state == "done" and not is_there(known)
    withdrawn = known.state == "cancelled" and known.error.startswith("no longer in ")
    return "again" if gone or withdrawn else "unchanged"
