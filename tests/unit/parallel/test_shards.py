"""Ownership of tokens and heads."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longtake.errors import LayoutError
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.heads import HeadShards, even_ranges


@given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 9))
def test_even_shards_hold_each_token_once_and_evenly(
    segments: list[int], ring_degree: int, ulysses_degree: int
) -> None:
    dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    shards = TokenShards.even(segments, dims)
    owners = {
        token: rank for rank, own in enumerate(shards.ranges) for span in own for token in span
    }
    assert sorted(owners) == list(range(sum(segments)))
    assert sum(shards.counts) == shards.num_tokens == sum(segments)
    starts = [sum(segments[:i]) for i in range(len(segments) + 1)]
    for first in range(len(segments)):
        for last in range(first + 1, len(segments) + 1):
            counts = [0] * dims.sequence_degree
            for token in range(starts[first], starts[last]):
                counts[owners[token]] += 1
            assert max(counts) - min(counts) <= 1


def test_one_segment_gives_each_rank_one_range_in_order() -> None:
    shards = TokenShards.even(7, ParallelDims(ring_degree=2, ulysses_degree=2))
    assert shards.ranges == ((range(0, 2),), (range(2, 4),), (range(4, 6),), (range(6, 7),))
    assert TokenShards.even((7,), ParallelDims(ulysses_degree=4)) == shards


def test_the_second_segment_continues_the_deal_of_the_first() -> None:
    shards = TokenShards.even((5, 3), ParallelDims(ulysses_degree=4))
    assert shards.counts == (2, 2, 2, 2)
    assert shards.ranges[0] == (range(0, 2),)
    assert shards.ranges[3] == (range(4, 5), range(7, 8))


def test_a_single_rank_owns_one_range() -> None:
    assert TokenShards.even((5, 3), ParallelDims()).ranges == ((range(0, 8),),)


@pytest.mark.parametrize("num_tokens", [-1, 1.5, "12", None, True, (3, -1), (3, 1.0)])
def test_invalid_numbers_of_tokens_are_refused(num_tokens: object) -> None:
    with pytest.raises(LayoutError, match="must be a whole number of at least 0"):
        TokenShards.even(num_tokens, ParallelDims())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ranges",
    [
        ((range(0, 2),), (range(3, 4),)),
        ((range(0, 2),), (range(1, 4),)),
        ((range(1, 2),),),
        ((range(0, 4, 2),), (range(1, 4, 2),)),
        ((range(0, 2), range(2, 2)),),
    ],
    ids=["gap", "overlap", "late start", "step", "empty"],
)
def test_ranges_that_do_not_hold_each_token_once_are_refused(
    ranges: tuple[tuple[range, ...], ...],
) -> None:
    with pytest.raises(LayoutError, match="does not continue from token"):
        TokenShards(ranges)


@given(st.integers(0, 50), st.integers(1, 9), st.integers(0, 9), st.integers(0, 8))
def test_even_ranges_are_contiguous_and_differ_by_one_at_most(
    total: int, parts: int, start: int, first: int
) -> None:
    ranges = even_ranges(total, parts, start=start, first=first)
    assert ranges[0].start == start and ranges[-1].stop == start + total
    assert all(low.stop == high.start for low, high in pairwise(ranges))
    longer = [part for part, span in enumerate(ranges) if len(span) > total // parts]
    assert sorted(longer) == sorted((first + odd) % parts for odd in range(total % parts))


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 20))
def test_each_query_head_reads_its_own_kv_head(
    num_kv_heads: int, group_size: int, ulysses_degree: int
) -> None:
    heads = HeadShards.even(num_kv_heads * group_size, num_kv_heads, ulysses_degree)
    assert [head for own in heads.query for head in own] == list(range(num_kv_heads * group_size))
    for rank, (query, kv) in enumerate(zip(heads.query, heads.kv, strict=True)):
        assert sorted({head // group_size for head in query}) == list(kv)
        runs = heads.runs(rank)
        assert len(runs) <= 3
        read = []
        for query_run, kv_run in runs:
            queries, kvs = list(query[query_run]), list(kv[kv_run])
            size, rest = divmod(len(queries), len(kvs))
            assert rest == 0
            read += [(head, kvs[position // size]) for position, head in enumerate(queries)]
        assert read == [(head, head // group_size) for head in query]


def test_a_split_inside_a_group_of_heads_gives_several_runs() -> None:
    # 3 query heads per KV head: the second of 2 ranks has one head of a group, and a whole group
    heads = HeadShards.even(9, 3, 2)
    assert heads.query == (range(0, 5), range(5, 9))
    assert heads.kv == (range(0, 2), range(1, 3))
    assert heads.runs(1) == [(slice(0, 1), slice(0, 1)), (slice(1, 4), slice(1, 2))]


@given(st.integers(0, 200), st.integers(1, 8), st.integers(1, 4))
def test_zigzag_gives_ring_rank_i_chunks_i_and_2r_1_i(
    num_tokens: int, ring_degree: int, ulysses_degree: int
) -> None:
    dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    shards = TokenShards.zigzag(num_tokens, dims)
    assert shards.num_tokens == num_tokens and shards.num_ranks == dims.sequence_degree
    assert max(shards.counts) - min(shards.counts) <= 1
    owner = [
        rank // ulysses_degree
        for _, rank in sorted(
            (token, rank)
            for rank, own in enumerate(shards.ranges)
            for span in own
            for token in span
        )
    ]
    lengths = [len(list(run)) for _, run in groupby(owner)]
    zigzag = [*range(ring_degree), *reversed(range(ring_degree))]
    if num_tokens >= 2 * ring_degree:  # no chunk is empty; the two in the middle are one run
        assert [rank for rank, _ in groupby(owner)] == [
            *range(ring_degree),
            *reversed(range(ring_degree - 1)),
        ]
        middle = lengths.pop(ring_degree - 1)
        chunks = [*lengths, middle // 2, middle - middle // 2]
        assert max(chunks) - min(chunks) <= 1
    else:
        remaining = iter(zigzag)
        assert all(rank in remaining for rank in owner), "a subsequence: chunks of 0 and 1 tokens"


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 4))
def test_ulysses_ranks_own_consecutive_parts_of_a_zigzag_pair(
    num_tokens: int, ring_degree: int, ulysses_degree: int
) -> None:
    dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    whole = TokenShards.zigzag(num_tokens, ParallelDims(ring_degree=ring_degree))
    parts = TokenShards.zigzag(num_tokens, dims)
    for ring_rank in range(ring_degree):
        members = parts.ranges[ring_rank * ulysses_degree : (ring_rank + 1) * ulysses_degree]
        tokens = [token for own in members for span in own for token in span]
        assert tokens == [token for span in whole.ranges[ring_rank] for token in span]
        assert all(len(own) <= 2 for own in members)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 4))
def test_each_document_is_dealt_in_zigzag(
    lengths: list[int], ring_degree: int, ulysses_degree: int
) -> None:
    dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    shards, start = TokenShards.zigzag(lengths, dims), 0
    assert shards.num_tokens == sum(lengths)
    assert max(shards.counts) - min(shards.counts) <= len(lengths)
    for length in lengths:
        document = shards.segment(range(start, start + length))
        assert max(document.counts) - min(document.counts) <= 1
        for ring_rank in range(ring_degree):
            members = document.ranges[ring_rank * ulysses_degree :][:ulysses_degree]
            tokens = sorted(token for own in members for span in own for token in span)
            gaps = [later - token for token, later in pairwise(tokens) if later != token + 1]
            assert len(gaps) <= 1, f"ring rank {ring_rank} owns two chunks"
        start += length


def test_zigzag_by_example() -> None:
    dims = ParallelDims(ring_degree=2, ulysses_degree=2)
    shards = TokenShards.zigzag(10, dims)  # chunks of 3, 3, 2, 2
    assert shards.ranges == (
        (range(0, 3),),
        (range(8, 10),),
        (range(3, 6),),
        (range(6, 8),),
    )
    packed = TokenShards.zigzag((4, 4), ParallelDims(ring_degree=2))
    assert packed.ranges == ((range(0, 1), range(3, 5), range(7, 8)), (range(1, 3), range(5, 7)))


def test_zigzag_of_no_and_one_token_and_of_a_ring_of_one() -> None:
    dims = ParallelDims(ring_degree=3, ulysses_degree=2)
    assert TokenShards.zigzag(0, dims).counts == (0,) * 6
    assert TokenShards.zigzag(1, dims).counts == (1, 0, 0, 0, 0, 0)
    ulysses = ParallelDims(ulysses_degree=3)
    assert TokenShards.zigzag(10, ulysses) == TokenShards.even(10, ulysses)


@pytest.mark.parametrize("num_tokens", [-1, 1.5, "12", None, True, (3, -1), (3, 1.0)])
def test_zigzag_refuses_invalid_numbers_of_tokens(num_tokens: object) -> None:
    with pytest.raises(LayoutError, match="must be a whole number of at least 0, or one for each"):
        TokenShards.zigzag(num_tokens, ParallelDims())  # type: ignore[arg-type]


def test_positions_without_a_mesh() -> None:
    shards = TokenShards(((range(4, 7), range(0, 4)),))
    assert shards.positions(None).tolist() == [4, 5, 6, 0, 1, 2, 3]
    assert shards.positions(None).dtype == torch.int64
    assert TokenShards.zigzag(5, ParallelDims()).positions(None).tolist() == [0, 1, 2, 3, 4]
    assert TokenShards.zigzag(0, ParallelDims()).positions(None).tolist() == []
    with pytest.raises(LayoutError, match="mesh=None, and shards of 2 ranks: build the mesh"):
        TokenShards.zigzag(5, ParallelDims(ring_degree=2)).positions(None)
