"""Ranks that hang are ended at their deadline."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from longtake import VideoEngine, VideoRequest
from longtake.engine import EngineConfig, Progress
from longtake.engine.launch.protocol.engine_side import check_idle
from longtake.engine.launch.protocol.messages import RankState
from longtake.errors import RankError
from tests.e2e.test_engine import ranks_of

pytestmark = pytest.mark.usefixtures("new_ranks")

ENDLESS = VideoRequest(prompt="a cat", num_inference_steps=10_000)


def hang(
    model: str, victims: Callable[[list[psutil.Process]], list[psutil.Process]], **timeouts: Any
) -> tuple[str, float]:
    """Suspend ranks while denoising; returns the engine's error and the seconds until it."""
    suspended_at = 0.0

    def suspend(progress: Progress) -> None:
        nonlocal suspended_at
        if progress.phase == "denoising" and progress.done == 5:
            suspended_at = time.monotonic()
            for victim in victims(ranks):
                victim.suspend()

    with VideoEngine.from_pretrained(model, devices=2, **timeouts) as engine:
        ranks = ranks_of(engine)
        with pytest.raises(RankError) as caught:
            engine.generate(ENDLESS, suspend)
    elapsed_s = time.monotonic() - suspended_at
    assert not any(rank.is_running() for rank in ranks)
    return str(caught.value), elapsed_s


def test_hanging_rank_ends_at_the_deadline(model: str) -> None:
    """It is suspended, which the engine has not detected by then."""
    text, elapsed_s = hang(model, lambda ranks: ranks[1:], step_timeout_s=3, rank_loss_timeout_s=30)
    assert re.match(
        r"rank 0 (made no progress for 3 s and was ended \(rank 1 had not ended\)"
        r"|failed: PeerLostError)",
        text,
    )
    assert "denoising" in text
    assert 2 < elapsed_s < 8


@pytest.mark.parametrize("first", [0, 1])
def test_suspended_rank_ends_all_within_the_loss_timeout(model: str, first: int) -> None:
    text, elapsed_s = hang(model, lambda ranks: ranks[first:], rank_loss_timeout_s=4)
    assert text.startswith(f"rank {'0, 1' if first == 0 else '1'} was suspended (SIGSTOP, or a ")
    assert 3 < elapsed_s < 8


def test_ranks_without_progress_are_killed(model: str) -> None:
    """Ranks that hang in a driver call, say, cannot end themselves."""
    config = EngineConfig(model=model, devices=2, load_timeout_s=7, rank_loss_timeout_s=4)
    step = Progress("denoising", 1, 2)
    working = {rank: RankState(step, timeout_s, 0.0) for rank, timeout_s in enumerate((5, 60))}
    check_idle(config, {}, 10.9)
    check_idle(config, working, 63.9)
    for states, idle_s in (({}, 11.1), (working, 64.1)):
        with pytest.raises(RankError, match=f"no rank made progress for {idle_s:.0f} s"):
            check_idle(config, states, idle_s)
