"""The work of ring ranks, and what of a block travels how far."""

from __future__ import annotations

import time
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.attention.mask import Mask
from longtake.parallel.attention.schedule import RingSchedule
from longtake.parallel.attention.traffic import AttentionTraffic

CAUSAL = Mask(causal=True)


def schedule_of(dims: ParallelDims, shards: TokenShards, mask: Mask = CAUSAL) -> RingSchedule:
    """The schedule of self-attention."""
    return AttentionTraffic(dims, shards, 1, 1, 1, mask).schedule


def work(schedule: RingSchedule) -> list[int]:
    """Scores of one head that each ring rank computes."""
    return [schedule.num_scores(rank) for rank in range(schedule.degree)]


@pytest.mark.parametrize("ring_degree", range(1, 9))
def test_zigzag_work_differs_by_the_row_of_one_query_at_most(ring_degree: int) -> None:
    for num_tokens, ulysses_degree in product(range(201), range(1, 5)):
        dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
        scores = work(schedule_of(dims, TokenShards.zigzag(num_tokens, dims)))
        assert sum(scores) == num_tokens * (num_tokens + 1) // 2
        apart = max(scores) - min(scores)
        assert apart <= num_tokens
        if num_tokens % (2 * ring_degree) == 0:
            assert apart == 0


def test_the_bound_of_zigzag_work_is_tight() -> None:
    """With 7 of 8 ring ranks' worth of surplus tokens, nearly a whole row."""
    dims = ParallelDims(ring_degree=8)
    scores = work(schedule_of(dims, TokenShards.zigzag(200, dims)))
    assert max(scores) - min(scores) == 175
    assert work(schedule_of(dims, TokenShards.zigzag(1, dims))) == [1, *[0] * 7]


@settings(max_examples=200)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 3))
def test_packed_documents_keep_the_balance(
    lengths: list[int], ring_degree: int, ulysses_degree: int
) -> None:
    dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    mask = Mask.of(True, lengths, sum(lengths))
    scores = work(schedule_of(dims, TokenShards.zigzag(lengths, dims), mask))
    assert sum(scores) == sum(length * (length + 1) // 2 for length in lengths)
    assert max(scores) - min(scores) <= sum(lengths)


def test_many_documents_are_scheduled_fast() -> None:
    """Each step of training packs others, so it computes a schedule: 0.2 s of a core."""
    lengths = [1 + 37 * at % 800 for at in range(256)]
    dims = ParallelDims(ring_degree=8)
    mask = Mask.of(True, lengths, sum(lengths))
    start = time.process_time()
    schedule = schedule_of(dims, TokenShards.zigzag(lengths, dims), mask)
    assert schedule.direction == -1
    assert time.process_time() - start < 3


@pytest.mark.parametrize("ring_degree", range(2, 9))
def test_even_shards_are_not_balanced(ring_degree: int) -> None:
    """The last ring rank computes 2R - 1 times the scores of the first, but for the diagonal."""
    dims, num_tokens = ParallelDims(ring_degree=ring_degree), 32 * ring_degree
    scores = work(schedule_of(dims, TokenShards.even(num_tokens, dims)))
    assert scores == sorted(scores)
    assert all(b - a == 32 * 32 for a, b in pairwise(scores))
    assert scores[-1] - scores[0] == 1024 * (ring_degree - 1) > num_tokens


def test_contiguous_blocks_travel_to_the_later_ranks_and_stop_there() -> None:
    dims = ParallelDims(ring_degree=4)
    schedule = schedule_of(dims, TokenShards.even(16, dims))
    assert schedule.direction == 1
    held = [[schedule.held(rank, step) for step in range(5)] for rank in range(4)]
    assert held == [[4, 0, 0, 0, 0], [4, 4, 0, 0, 0], [4, 4, 4, 0, 0], [4, 4, 4, 4, 0]]
    computed = [[len(schedule.tiles(rank, step)) for step in range(4)] for rank in range(4)]
    assert computed == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_zigzag_blocks_shrink_to_their_first_chunk() -> None:
    """Earlier ranks see both chunks of a block with their last chunk, later ranks only the first.

    So it travels to the earlier ranks first, whole, and to the later ones by half.
    """
    dims = ParallelDims(ring_degree=4)
    schedule = schedule_of(dims, TokenShards.zigzag(32, dims))
    assert schedule.direction == -1
    held = [[schedule.held(rank, step) for step in range(5)] for rank in range(4)]
    assert held == [[8, 8, 8, 8, 0], [8, 8, 8, 4, 0], [8, 8, 4, 4, 0], [8, 4, 4, 4, 0]]


@given(st.data(), st.integers(1, 5), st.integers(0, 30), st.booleans())
def test_a_hop_carries_what_later_ranks_see_and_no_more(
    data: st.DataObject, ring_degree: int, num_tokens: int, causal: bool
) -> None:
    """For tokens dealt in any way, with and without documents, all blocks' prefixes arrive."""
    owner_of = data.draw(
        st.lists(st.integers(0, ring_degree - 1), min_size=num_tokens, max_size=num_tokens)
    )
    groups = tuple(
        tuple(range(at, at + 1) for at, owner in enumerate(owner_of) if owner == rank)
        for rank in range(ring_degree)
    )
    ends = data.draw(st.sets(st.integers(1, max(1, num_tokens)), max_size=3))
    edges = sorted({0, *ends, num_tokens}) if num_tokens else [0]
    lengths = [stop - start for start, stop in pairwise(edges)]
    mask = Mask.of(causal, lengths or None, num_tokens)
    schedule = RingSchedule(mask, groups, groups)
    for rank in range(ring_degree):
        visitors = [schedule.visitor(rank, step) for step in range(ring_degree)]
        assert all(schedule.owner(visitor, step) == rank for step, visitor in enumerate(visitors))
        sizes = [schedule.held(visitor, step) for step, visitor in enumerate(visitors)]
        assert sizes[0] == len(groups[rank]) and sizes == sorted(sizes, reverse=True)
        if not mask.hides:
            assert set(sizes) == {len(groups[rank])}
            continue
        seen = [schedule.seen(visitor, rank) for visitor in visitors]
        assert sizes[1:] == [max(seen[step:]) for step in range(1, ring_degree)]
        for step in range(1, ring_degree):
            last = [
                row
                for row, key in enumerate(groups[rank])
                if any(
                    mask.document(query.start) == mask.document(key.start)
                    and (not causal or key.start <= query.start)
                    for query in groups[visitors[step]]
                )
            ]
            assert seen[step] == (last[-1] + 1 if last else 0)
