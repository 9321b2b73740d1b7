"""Ranks that hang: deadlines end them all, with the reason; never a hang."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import psutil
import pytest

from longtake import VideoEngine, VideoRequest
from longtake.engine import Progress
from longtake.errors import EngineError
from tests.e2e.test_engine import ranks_of

ENDLESS = VideoRequest(prompt="a cat", num_inference_steps=10_000)


@pytest.fixture
def engine(model: str) -> Iterator[VideoEngine]:
    with VideoEngine.from_pretrained(
        model, devices=2, step_timeout_s=3, rank_loss_timeout_s=3
    ) as engine:
        yield engine


def hang(engine: VideoEngine, victims: list[psutil.Process]) -> tuple[str, float]:
    """Suspend some ranks in the middle of denoising; what the engine says, and after how long."""
    suspended_at = 0.0

    def suspend(progress: Progress) -> None:
        nonlocal suspended_at
        if progress.phase == "denoising" and progress.done == 5:
            suspended_at = time.monotonic()
            for victim in victims:
                victim.suspend()

    ranks = ranks_of(engine)
    with pytest.raises(EngineError) as caught:
        engine.generate(ENDLESS, suspend)
    taken = time.monotonic() - suspended_at
    assert not any(rank.is_running() for rank in ranks)
    return str(caught.value), taken


def test_a_rank_that_hangs_is_waited_for_until_the_deadline(engine: VideoEngine) -> None:
    text, taken = hang(engine, ranks_of(engine)[1:])
    assert re.match(r"rank 0 (made no progress for 3 s and was ended|failed: PeerLostError)", text)
    assert "denoising" in text
    assert 2 < taken < 8


def test_when_all_hang_the_engine_ends_them(engine: VideoEngine) -> None:
    text, taken = hang(engine, ranks_of(engine))
    assert re.match(r"no rank made progress for \d+ s, 3 s were allowed", text)
    assert 5 < taken < 10
