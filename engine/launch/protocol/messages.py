"""What an engine and its ranks exchange over a key-value store, whichever launcher started them.

The engine sends its config, jobs, job inputs, stop requests and the request to exit. Ranks send
their progress, heartbeats and failures; rank 0 also sends the output and the result of each job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longtake.pipelines.runtime.progress import Progress

LOADING = 0
"""Job number while the model loads; jobs are numbered from 1."""

CONFIG, DEVICE_TYPE, LORAS = "config", "device", "loras"
"""Keys of values that the engine sets before any rank starts."""
JOBS, JOB_INPUTS, OUTPUT = "jobs", "job_inputs", "output"
"""Names of the mailboxes."""
STATE, FAILURE, HEARTBEAT = "state", "failure", "heartbeat"
"""Names of values that each rank sets; see :func:`rank_key`."""

FailureKind = Literal["refused", "lost", "out of memory", "failed"]


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
        kind: Whether the rank refused its input, lost another rank, ran out of memory, or failed
            otherwise.
        type_name: Name of the exception's class.
        message: The exception's message on one line.
    """

    kind: FailureKind
    type_name: str
    message: str


def rank_key(name: str, rank: int) -> str:
    """Key of a value that each rank sets."""
    return f"{name}/{rank}"


def stop_key(number: int) -> str:
    """Key that the engine sets to stop a job."""
    return f"stop/{number}"
