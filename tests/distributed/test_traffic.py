"""usp_attention sends the bytes of the design's formula, in as few calls."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from benchmarks.traffic import TrafficMeter
from longtake.parallel import ParallelDims, TokenShards, usp_attention
from longtake.parallel.attention.all_to_all import pack_kv
from longtake.parallel.attention.mask import Mask
from longtake.parallel.attention.ring import RingGroup, ring_attention
from longtake.parallel.attention.schedule import RingSchedule
from longtake.parallel.attention.traffic import AttentionTraffic
from longtake.parallel.mesh import sequence_rank
from tests.layouts import HEADS, LAYOUTS, layout_name
from tests.ranks import RankGroups, mesh_of, random_tensors

HEAD_SIZE = 8


def expected_bytes(
    dims: ParallelDims,
    rank: int,
    tokens: tuple[int, ...],
    kv_tokens: tuple[int, ...],
    heads: tuple[int, int],
    head_bytes: int,
) -> int:
    """The bytes that a rank sends, by the design's formula and from the counts of tokens alone.

    All-to-alls, to each Ulysses peer j: e * B * H * [s_i * n_j + t_i * 2 * m_j + s_j * n_i]. Ring:
    every block of K and V that it forwards.

    Args:
        dims: The layout.
        rank: Sequence rank.
        tokens: Query tokens of each sequence rank.
        kv_tokens: Key tokens of each sequence rank.
        heads: Number of query heads and of KV heads.
        head_bytes: Bytes of one head of one token over the batch: e * B * H.
    """
    ulysses_degree = dims.ulysses_degree
    counts, kv_counts = head_counts(*heads, ulysses_degree)
    ring_rank, ulysses_rank = divmod(rank, ulysses_degree)
    first = ring_rank * ulysses_degree
    exchanged = sum(
        tokens[rank] * counts[peer]
        + 2 * kv_tokens[rank] * kv_counts[peer]
        + tokens[first + peer] * counts[ulysses_rank]
        for peer in range(ulysses_degree)
        if peer != ulysses_rank
    )
    blocks = [
        sum(kv_tokens[start : start + ulysses_degree])
        for start in range(0, len(kv_tokens), ulysses_degree)
    ]
    forwarded = sum(
        blocks[(ring_rank - step) % dims.ring_degree] for step in range(dims.ring_degree - 1)
    )
    return (exchanged + 2 * forwarded * kv_counts[ulysses_rank]) * head_bytes


def head_counts(
    num_heads: int, num_kv_heads: int, ulysses_degree: int
) -> tuple[list[int], list[int]]:
    """Query heads of each Ulysses rank, the first ranks with one more, and their KV heads."""
    group_size, (base, odd) = num_heads // num_kv_heads, divmod(num_heads, ulysses_degree)
    counts = [base + (rank < odd) for rank in range(ulysses_degree)]
    owners = [rank for rank, count in enumerate(counts) for _ in range(count)]
    kv_counts = [
        len({head // group_size for head in range(num_heads) if owners[head] == rank})
        for rank in range(ulysses_degree)
    ]
    return counts, kv_counts


def check_traffic(
    dims: ParallelDims,
    tokens: int,
    kv_tokens: int | None,
    heads: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
) -> None:
    """On one rank: count one call of usp_attention."""
    mesh = mesh_of(dims)
    shards = TokenShards.even(tokens, dims)
    kv_shards = shards if kv_tokens is None else TokenShards.even(kv_tokens, dims)
    q, k, v = random_tensors(
        0,
        [
            (batch, s.num_tokens, n, HEAD_SIZE)
            for s, n in ((shards, heads[0]), (kv_shards, heads[1]))
        ]
        + [(batch, kv_shards.num_tokens, heads[1], HEAD_SIZE)],
        dtype,
    )
    q = shards.split(q, mesh, dim=1)
    k, v = (kv_shards.split(tensor, mesh, dim=1) for tensor in (k, v))
    with TrafficMeter() as meter:
        usp_attention(q, k, v, mesh=mesh, shards=shards, kv_shards=kv_shards)
    rank = sequence_rank(mesh)
    head_bytes = batch * HEAD_SIZE * dtype.itemsize
    expected = expected_bytes(dims, rank, shards.counts, kv_shards.counts, heads, head_bytes)
    assert meter.bytes_sent == expected, (rank, meter.calls)
    assert meter.calls["alltoall_base_"] == (2 if dims.ulysses_degree > 1 else 0)
    assert meter.calls["send"] <= dims.ring_degree - 1
    assert set(meter.calls) <= {"alltoall_base_", "send", "recv_"}


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_bytes_and_collectives(ranks: RankGroups, dims: ParallelDims) -> None:
    for tokens, heads in product((1, 13, 29), HEADS):
        ranks.run(dims.world_size, check_traffic, dims, tokens, None, heads, 1, torch.float32)
    ranks.run(dims.world_size, check_traffic, dims, 13, 29, (6, 2), 3, torch.bfloat16)
    ranks.run(dims.world_size, check_traffic, dims, 29, 3, (3, 3), 1, torch.float64)


def check_training_traffic(dims: ParallelDims) -> None:
    """On one rank: count forward and backward passes."""
    mesh, dtype, batch = mesh_of(dims), torch.bfloat16, 2
    for split, tokens, heads, causal in product(
        (TokenShards.even, TokenShards.zigzag),
        (1, 13, 31),
        ((6, 2), (3, 1), (4, 4), (1, 1)),
        (False, True),
    ):
        shards = split(tokens, dims)
        shapes = [(batch, tokens, n, HEAD_SIZE) for n in (heads[0], heads[1], heads[1])]
        own = [shards.split(t, mesh, dim=1) for t in random_tensors(0, shapes, dtype)]
        q, k, v = (tensor.clone().requires_grad_() for tensor in own)
        head_bytes = batch * HEAD_SIZE * dtype.itemsize
        traffic = AttentionTraffic(dims, shards, *heads, head_bytes, Mask(causal))
        with TrafficMeter() as forward:
            out = usp_attention(q, k, v, mesh=mesh, shards=shards, causal=causal)
        with TrafficMeter() as backward:
            out.sum().backward()
        rank = sequence_rank(mesh)
        assert forward.bytes_sent == traffic.bytes_sent_by(rank)
        assert backward.bytes_sent == traffic.backward_bytes_sent_by(rank), backward.calls
        for meter, sends in ((forward, 1), (backward, 2)):
            assert meter.calls["alltoall_base_"] == (2 if dims.ulysses_degree > 1 else 0)
            assert meter.calls["send"] <= sends * (dims.ring_degree - 1)
            assert set(meter.calls) <= {"alltoall_base_", "send", "recv_"}


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_bytes_and_collectives_of_training(ranks: RankGroups, dims: ParallelDims) -> None:
    """Without a mask the planner's bytes equal the design's formula: test_planned_traffic."""
    ranks.run(dims.world_size, check_training_traffic, dims)


def test_the_formula_of_the_docs() -> None:
    """Even shards, no mask: backward sends what forward does, and the gradients of blocks.

    With zigzag shards and a causal mask, 3/4 of the blocks and of their gradients.
    """
    dims = ParallelDims(ring_degree=4, ulysses_degree=2)
    shards, zigzag = TokenShards.even(64, dims), TokenShards.zigzag(64, dims)
    full = AttentionTraffic(dims, shards, 8, 4, 1)
    ring = 2 * 4 // 2 * 64 // 4 * 3
    exchanged = (2 * 8 + 2 * 4) * 64 // 8 // 2
    causal = AttentionTraffic(dims, zigzag, 8, 4, 1, Mask(causal=True))
    for rank in range(8):
        assert full.bytes_sent_by(rank) == exchanged + ring
        assert full.backward_bytes_sent_by(rank) == exchanged + 2 * ring
    sent = sum(causal.bytes_sent_by(rank) - exchanged for rank in range(8))
    back = sum(causal.backward_bytes_sent_by(rank) - exchanged for rank in range(8)) - sent
    assert sent == back == 8 * ring * 3 // 4


def test_the_worked_example_of_the_design(ranks: RankGroups) -> None:
    """Even shards and disjoint KV heads: (2N + 2Nkv) H e S/P (U-1)/U, and 2 Nkv/U H e S/R (R-1)."""
    dims, tokens, heads = ParallelDims(ring_degree=2, ulysses_degree=2), 64, (8, 4)
    expected = (2 * 8 + 2 * 4) * HEAD_SIZE * 4 * 16 // 2 + 2 * 2 * HEAD_SIZE * 4 * 32
    counts = TokenShards.even(tokens, dims).counts
    assert expected_bytes(dims, 1, counts, counts, heads, HEAD_SIZE * 4) == expected
    ranks.run(4, check_traffic, dims, tokens, None, heads, 1, torch.float32)


def all_to_all_sizes(dims: ParallelDims) -> list[tuple[list[int], list[int]]]:
    """On one rank: the split sizes of every all-to-all, as passed to torch.distributed."""
    seen = []

    class Sizes(TrafficMeter):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func._schema.name == "c10d::alltoall_base_":
                seen.append((list(args[3]), list(args[4])))
            return super().__torch_dispatch__(func, types, args, kwargs)

    mesh = mesh_of(dims)
    shards = TokenShards.even(13, dims)
    q, k, v = (shards.split(t, mesh, dim=1) for t in random_tensors(0, [(1, 13, 6, 8)] * 3))
    with Sizes():
        usp_attention(q, k, v, mesh=mesh, shards=shards)
    return seen


def test_a_rank_sends_nothing_to_itself(ranks: RankGroups) -> None:
    answers = ranks.run(3, all_to_all_sizes, ParallelDims(ulysses_degree=3))
    for rank, calls in enumerate(answers):
        assert [(received[rank], sent[rank]) for received, sent in calls] == [(0, 0), (0, 0)]


def order_of_events(dims: ParallelDims) -> list[str]:
    """On one rank: the sends and attention calls of a ring, in order."""
    mesh = mesh_of(dims)
    shards = TokenShards.even(13, dims)
    (whole,) = random_tensors(0, [(1, 13, 6, 8)])
    q = shards.split(whole, mesh, dim=1)
    rank = sequence_rank(mesh)
    schedule = RingSchedule(Mask(), shards.ranges, shards.ranges)
    ring = RingGroup(mesh.get_group("ring"), rank, schedule)
    events = []

    class Events(TrafficMeter):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func._schema.name == "c10d::send":
                events.append("send")
            return super().__torch_dispatch__(func, types, args, kwargs)

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        events.append("attend")
        return torch.zeros_like(q), torch.zeros(q.shape[:3])

    with Events():
        ring_attention(q, pack_kv(q, q), ring, attend)
    return events


def test_the_next_block_is_sent_before_attention_to_this_one(ranks: RankGroups) -> None:
    answers = ranks.run(3, order_of_events, ParallelDims(ring_degree=3))
    assert answers == [["send", "attend", "send", "attend", "attend"]] * 3
