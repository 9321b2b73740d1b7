"""Retries after faults."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.errors import EngineError, RankError, RequestError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.retry_policy import PermanentError, judge_fault
from tests.rendering import request

PICTURE = dict(image="/a.png", image_sha256="0" * 64, i2v_mode="stable", resize_mode="crop")


def job(faults: int = 0, fault_step: int = -1, low_memory: bool = False, **asked: Any) -> JobRecord:
    return JobRecord(
        "shot",
        "shots.jsonl",
        0,
        "shot.mp4",
        "engine",
        request(**asked),
        "fingerprint",
        state="running",
        claims=1,
        faults=faults,
        fault_step=fault_step,
        not_before=0.0,
        cancelling=False,
        low_memory=low_memory,
        owner=None,
        lease_until=0.0,
        phase="",
        steps_done=0,
        queued_at=0.0,
        started_at=None,
        ended_at=None,
        seconds={},
        error="",
    )


def test_delays_double_up_to_a_minute() -> None:
    error = RankError("rank 0 died")
    delays = [judge_fault(job(faults, 3), error, 3, 99).retry_delay_s for faults in range(8)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]


def test_progress_resets_the_count() -> None:
    fault = judge_fault(job(faults=4, fault_step=3), RankError("x"), 4, 5)
    assert (fault.count, fault.step, fault.retry_delay_s) == (1, 4, 1)
    fault = judge_fault(job(faults=4, fault_step=3), RankError("x"), 3, 5)
    assert (fault.count, fault.retry_delay_s) == (5, None)
    assert fault.message == "x\n(after 5 faults in a row)"


@pytest.mark.parametrize(
    ("error", "asked", "retried"),
    [
        (RequestError("no"), {}, False),
        (RequestError("cannot be read"), PICTURE, True),
        (PermanentError("taken"), PICTURE, False),
        (EngineError("disk full"), {}, True),
        (OSError(5, "Input/output error"), {}, True),
    ],
)
def test_refused_requests_fail_at_once_except_with_pictures(
    error: Exception, asked: dict[str, Any], retried: bool
) -> None:
    fault = judge_fault(job(**asked), error, 0, 5)
    assert (fault.retry_delay_s is not None) is retried
    assert "\n" not in fault.message


@pytest.mark.parametrize(
    ("out_of_memory", "phase", "low_memory"),
    [
        (True, "decoding", True),
        (True, "waiting", True),
        (True, "denoising", False),
        (False, "decoding", False),
    ],
)
def test_low_memory_follows_out_of_memory_in_decode(
    out_of_memory: bool, phase: str, low_memory: bool
) -> None:
    error = RankError("rank 0 failed")
    error.out_of_memory, error.phase = out_of_memory, phase
    assert judge_fault(job(), error, 0, 5).low_memory is low_memory
    assert judge_fault(job(low_memory=True), error, 0, 5).low_memory
