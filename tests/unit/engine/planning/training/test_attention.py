"""One causal attention across ranks: work, overlap, and what stays exposed."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.decoders import load_decoder
from longtake.configs.hardware import load_hardware
from longtake.engine.planning.training.attention import (
    BACKWARD_FLOPS,
    BACKWARD_RATE,
    SequenceAttention,
)
from longtake.engine.planning.training.communication import Collectives
from longtake.engine.planning.training.layouts import TrainingLayout
from longtake.engine.planning.training.training_input import TrainingInput


def attention(sequence: int = 65536, gpu: str = "a800", **degrees: Any) -> SequenceAttention:
    training = TrainingInput(
        config=load_decoder("llama3-8b"), hardware=load_hardware(gpu), sequence=sequence
    )
    return SequenceAttention(training, TrainingLayout(**degrees))


def test_forward_takes_the_published_time_of_a_kernel() -> None:
    """FlashAttention-2 with these heads on an A100: 373.4 forward/s and 94.7 with backward."""
    alone = attention(8192)
    forward, backward = alone.forward().seconds, alone.backward().seconds
    assert 1 / forward == pytest.approx(373.4, rel=0.01)
    assert 1 / (forward + backward) == pytest.approx(94.7, rel=0.01)


def test_every_split_shares_the_work_evenly() -> None:
    whole = attention().forward().attention_s
    splits: list[dict[str, Any]] = [{"ring": 8}, {"ulysses": 8}, {"ring": 2, "ulysses": 4}]
    for degrees in (*splits, {"tensor": 8}):
        split = attention(**degrees)
        assert split.forward().attention_s == pytest.approx(whole / 8)
        ratio = split.backward().attention_s / split.forward().attention_s
        assert ratio == pytest.approx(BACKWARD_FLOPS / BACKWARD_RATE)


def test_the_last_gradients_of_a_ring_travel_alone() -> None:
    """Long blocks hide all else, up to the profile's share."""
    split = attention(2**20, ring=4)
    bytes_of_block = split._block_bytes
    link = Collectives(split.training.hardware, split.layout)
    hop_s = link.ring_s(bytes_of_block)
    share = split.training.hardware.overlap_share.value
    forward, backward = split.forward(), split.backward()
    assert forward.hidden_s == pytest.approx(3 * share * hop_s)
    assert forward.exposed_s == pytest.approx(3 * (1 - share) * hop_s)
    returns_s = [link.ring_s(bytes_of_block, distance) for distance in (1, 2, 3)]
    beside_s = 3 * hop_s + sum(returns_s[:2])
    assert backward.hidden_s == pytest.approx(share * beside_s)
    assert backward.exposed_s == pytest.approx((1 - share) * beside_s + returns_s[2])


def test_short_blocks_leave_hops_exposed() -> None:
    forward = attention(1024, ring=8).forward()
    assert forward.hidden_s == pytest.approx(7 / 8 * forward.attention_s)
    assert forward.exposed_s > 10 * forward.hidden_s


def test_all_to_alls_are_exposed() -> None:
    forward, backward = attention(ulysses=8).forward(), attention(ulysses=8).backward()
    assert forward.hidden_s == backward.hidden_s == 0
    assert forward.exposed_s == pytest.approx(backward.exposed_s)
    assert 0 < attention(ulysses=8).to_heads().exposed_s < forward.exposed_s
