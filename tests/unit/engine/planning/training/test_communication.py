"""Durations of collectives, from links whose rates are known."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.decoders import load_decoder
from longtake.configs.hardware import load_hardware
from longtake.engine.planning.training.attention import SequenceAttention
from longtake.engine.planning.training.communication import Collectives
from longtake.engine.planning.training.layouts import TrainingLayout
from longtake.engine.planning.training.training_input import TrainingInput
from longtake.parallel.attention.traffic import AttentionTraffic

A800 = load_hardware("a800")
NVLINK, INFINIBAND = (link.bytes_per_s.value for link in A800.links)
LATENCIES = [link.latency_s.value for link in A800.links]


def collectives(**degrees: Any) -> Collectives:
    return Collectives(A800, TrainingLayout(**degrees))


def test_a_group_of_one_sends_nothing() -> None:
    alone = collectives()
    assert alone.gather_over_copies_s(1e9) == alone.gather_over_tensor_s(1e9) == 0
    assert alone.all_to_all_s(1e9) == alone.ring_s(1e9) == alone.next_stage_s(1e9) == 0


def test_a_gather_in_a_node_takes_its_part_of_the_buffer() -> None:
    expected = 8e9 * 7 / 8 / NVLINK + LATENCIES[0]
    assert collectives(tensor=8).gather_over_tensor_s(8e9) == pytest.approx(expected)
    assert collectives(data=8).gather_over_copies_s(8e9) == pytest.approx(expected)


def test_a_gather_across_nodes_uses_every_port_of_a_node() -> None:
    seconds = collectives(ring=2, ulysses=8).gather_over_copies_s(16e9)
    inner, outer = 15e9 / NVLINK, 15e9 / 8 / INFINIBAND
    assert inner > outer
    assert seconds == pytest.approx(inner + LATENCIES[1])
    one_port = collectives(ring=2, tensor=8).gather_over_copies_s(16e9)  # a member a node
    assert one_port == pytest.approx(8e9 / INFINIBAND + LATENCIES[1])


def test_a_ring_across_nodes_is_as_fast_as_its_slowest_hop() -> None:
    within = collectives(ring=2, ulysses=4).ring_s(1e9)
    across = collectives(ring=4, ulysses=4).ring_s(1e9)
    assert within == pytest.approx(1e9 / NVLINK + LATENCIES[0])
    assert across == pytest.approx(1e9 / INFINIBAND + LATENCIES[1])


def test_an_all_to_all_sends_to_every_peer() -> None:
    seconds = collectives(ulysses=8).all_to_all_s(1e8)
    assert seconds == pytest.approx(7e8 / NVLINK + LATENCIES[0])
    # with tensor parallelism inside, the group of 4 spans 2 nodes of 8
    spread = collectives(ulysses=4, tensor=4).all_to_all_s(1e8)
    assert spread == pytest.approx(2e8 / INFINIBAND + LATENCIES[1])


def test_attention_exchanges_the_bytes_of_parallel() -> None:
    """The planner's sizes are those of AttentionTraffic, which the exchanges are tested against."""
    training = TrainingInput(config=load_decoder("llama3-8b"), hardware=A800, sequence=65536)
    layout = TrainingLayout(ring=2, ulysses=4, tensor=2)
    traffic = SequenceAttention(training, layout).traffic
    expected = AttentionTraffic(layout.dims, traffic.shards, 16, 4, 128 * 2)
    assert traffic == expected
    attention = SequenceAttention(training, layout)
    there, back = attention._exchange_bytes()
    hop = attention._block_bytes
    sent = 3 * there + 3 * back + hop
    assert sent == expected.bytes_sent_by(0)
