"""Decides whether a job is retried after a fault."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.errors import LongtakeError, RankError, RefusedInputError, RequestError, one_line
from longtake.serve.queue.job_records import JobRecord

_MAX_DELAY_S = 60.0


class PermanentError(RequestError):
    """An error that a retry cannot avoid."""


@dataclass(frozen=True)
class Fault:
    """A fault of a job, and its consequences.

    Attributes:
        message: Message for the queue and the user.
        count: Consecutive faults without progress, this one included.
        step: Denoising step from which the job can resume.
        low_memory: Whether to decode with minimal memory from now on.
        retry_delay_s: Seconds until the next attempt; None if the job fails.
    """

    message: str
    count: int
    step: int
    low_memory: bool
    retry_delay_s: float | None


def judge_fault(job: JobRecord, error: Exception, step: int, max_faults: int) -> Fault:
    """Decide whether a job is retried after an error.

    A refused request fails at once, unless it has pictures, which may become readable again. Any
    other error counts as a fault. Progress resets the count, so a long job survives any number of
    faults as long as it advances.

    Args:
        job: The job as it was claimed.
        error: Error that ended the attempt.
        step: Denoising step from which the job can resume.
        max_faults: Number of consecutive faults without progress at which the job fails.
    """
    message = str(error) if isinstance(error, LongtakeError) else one_line(error)
    count = 1 if step > job.fault_step else job.faults + 1
    delay_s: float | None = min(2.0 ** (count - 1), _MAX_DELAY_S)
    if _is_permanent(job, error):
        delay_s = None
    elif count >= max_faults:
        message, delay_s = f"{message}\n(after {count} faults in a row)", None
    low_memory = job.low_memory or _ran_out_of_memory_decoding(error)
    return Fault(message, count, step, low_memory, delay_s)


def _is_permanent(job: JobRecord, error: Exception) -> bool:
    if isinstance(error, PermanentError):
        return True
    return isinstance(error, RefusedInputError) and not job.request.picture_paths


def _ran_out_of_memory_decoding(error: Exception) -> bool:
    return (
        isinstance(error, RankError)
        and error.out_of_memory
        and error.phase in ("decoding", "waiting")
    )
