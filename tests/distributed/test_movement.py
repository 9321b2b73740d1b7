"""Exchanges of tokens and heads between ranks are bit-exact."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.attention.all_to_all import (
    UlyssesGroup,
    heads_to_tokens,
    split_kv,
    tokens_to_heads,
)
from longtake.parallel.heads import HeadShards
from longtake.parallel.mesh import RING_AXIS, ULYSSES_AXIS, axis_rank, sequence_rank
from tests.layouts import HEADS, LAYOUTS, layout_name
from tests.ranks import RankGroups, mesh_of, random_tensors

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float64,
    torch.complex64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]


def check_split_and_gather(dims: ParallelDims) -> None:
    """On one rank: split a tensor, check the tokens, gather it, and compare."""
    mesh = mesh_of(dims)
    rank = sequence_rank(mesh)
    for num_tokens in (0, 1, dims.world_size - 1, 13, (5, 2), (1, 1, 1, 1), (0, 9)):
        shards = TokenShards.even(num_tokens, dims)
        count = shards.num_tokens
        positions = torch.arange(count)
        own = shards.split(positions, mesh, dim=0)
        assert own.tolist() == [token for span in shards.ranges[rank] for token in span]
        for shape, dim in [
            ((count,), 0),
            ((2, count, 3), 1),
            ((2, count, 3), -2),
            ((3, count), -1),
        ]:
            for dtype in DTYPES:
                whole = random_tensors(1, [shape])[0].mul(3).to(dtype)
                part = shards.split(whole, mesh, dim=dim)
                gathered = shards.gather(part, mesh, dim=dim)
                assert gathered.dtype == dtype and gathered.shape == whole.shape
                assert gathered.is_contiguous()
                assert gathered.flatten().tolist() == whole.flatten().tolist()


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_split_then_gather_is_the_identity(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_split_and_gather, dims)


def check_zigzag(dims: ParallelDims) -> None:
    """On one rank: shards with several ranges per rank, out of order."""
    mesh = mesh_of(dims)
    ranges = [[range(i, i + 1), range(11 - i, 12 - i)] for i in range(dims.world_size)]
    ranges[-1].append(range(dims.world_size, 12 - dims.world_size))
    shards = TokenShards(tuple(map(tuple, ranges)))
    (whole,) = random_tensors(2, [(2, 12, 3)])
    part = shards.split(whole, mesh, dim=1)
    rank = sequence_rank(mesh)
    expected = torch.cat([whole[:, span.start : span.stop] for span in ranges[rank]], dim=1)
    assert torch.equal(part, expected)
    assert torch.equal(shards.gather(part, mesh, dim=1), whole)


@pytest.mark.parametrize("dims", LAYOUTS[:8], ids=layout_name)
def test_split_and_gather_accept_ranges_in_any_order(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_zigzag, dims)


def check_round_trip(dims: ParallelDims, heads: tuple[int, int], batch: int) -> None:
    """On one rank: exchange tokens for heads, check them, exchange them back."""
    mesh = mesh_of(dims)
    ring_rank, rank = axis_rank(mesh, RING_AXIS), axis_rank(mesh, ULYSSES_AXIS)
    head_shards = HeadShards.even(*heads, dims.ulysses_degree)
    for tokens, kv_tokens, contiguous_kv in product((13, 2), (None, 7), (False, True)):
        shards = TokenShards.even(tokens, dims)
        kv_shards = TokenShards.even(kv_tokens or tokens, dims)
        ulysses = UlyssesGroup(
            mesh.get_group(ULYSSES_AXIS),
            rank,
            shards.ulysses_counts(mesh),
            kv_shards.ulysses_counts(mesh),
            head_shards,
        )
        q, k, v = random_tensors(
            3,
            [
                (batch, shards.num_tokens, heads[0], 4),
                (batch, kv_shards.num_tokens, heads[1], 4),
                (batch, kv_shards.num_tokens, heads[1], 4),
            ],
        )
        own_q = shards.split(q, mesh, dim=1)
        own_k, own_v = (kv_shards.split(tensor, mesh, dim=1) for tensor in (k, v))
        q_heads, kv_heads = tokens_to_heads(
            own_q, own_k, own_v, ulysses, contiguous_kv=contiguous_kv
        )
        assert kv_heads.is_contiguous() or not contiguous_kv
        for part, whole, owner, owned in [
            (q_heads, q, shards, head_shards.query[rank]),
            (split_kv(kv_heads)[0], k, kv_shards, head_shards.kv[rank]),
            (split_kv(kv_heads)[1], v, kv_shards, head_shards.kv[rank]),
        ]:
            first = ring_rank * dims.ulysses_degree
            order = [first + rank] + [
                first + peer for peer in range(dims.ulysses_degree) if peer != rank
            ]
            group = [token for member in order for span in owner.ranges[member] for token in span]
            assert torch.equal(part, whole[:, group][:, :, list(owned)])
        assert torch.equal(heads_to_tokens(q_heads, ulysses), own_q)


@pytest.mark.parametrize(
    "dims", [dims for dims in LAYOUTS if dims.ulysses_degree > 1], ids=layout_name
)
def test_tokens_to_heads_and_back_is_the_identity(ranks: RankGroups, dims: ParallelDims) -> None:
    for heads in HEADS:
        ranks.run(dims.world_size, check_round_trip, dims, heads, 1)
    ranks.run(dims.world_size, check_round_trip, dims, (6, 2), 3)


def outputs_are_views(dims: ParallelDims) -> tuple[bool, bool]:
    """On one rank: whether q and kv are views of one buffer, and v is a view of kv."""
    mesh = mesh_of(dims)
    shards = TokenShards.even(12, dims)
    rank = axis_rank(mesh, ULYSSES_AXIS)
    counts = shards.ulysses_counts(mesh)
    ulysses = UlyssesGroup(
        mesh.get_group(ULYSSES_AXIS), rank, counts, counts, HeadShards.even(4, 4, 2)
    )
    q, k, v = (shards.split(t, mesh, dim=1) for t in random_tensors(0, [(3, 12, 4, 8)] * 3))
    q_heads, kv_heads = tokens_to_heads(q, k, v, ulysses, contiguous_kv=False)
    one_buffer = q_heads.untyped_storage().data_ptr() == kv_heads.untyped_storage().data_ptr()
    return one_buffer, split_kv(kv_heads)[1].untyped_storage().data_ptr() == (
        kv_heads.untyped_storage().data_ptr()
    )


def test_received_tensors_are_views_of_one_buffer(ranks: RankGroups) -> None:
    assert ranks.run(2, outputs_are_views, ParallelDims(ulysses_degree=2)) == [(True, True)] * 2
