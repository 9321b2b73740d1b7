"""Tiles hold every visible pair of a query and a key once, and no hidden one."""

from __future__ import annotations

from itertools import accumulate, pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longtake.errors import TensorError
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.attention.mask import Mask, Spans, Tile, TokenOrder
from longtake.parallel.attention.traffic import AttentionTraffic


@st.composite
def document_lengths(draw: st.DrawFn, num_tokens: int) -> list[int] | None:
    """Lengths of the documents packed in a sequence, or None for a single document."""
    ends = draw(st.none() | st.sets(st.integers(1, max(1, num_tokens - 1)), max_size=5))
    if ends is None or num_tokens == 0:
        return None
    return [stop - start for start, stop in pairwise(sorted({0, *ends, num_tokens}))]


@st.composite
def spans_of_owners(draw: st.DrawFn, num_tokens: int) -> list[list[range]]:
    """Ranges that up to three owners hold of a sequence, each in any order."""
    cuts = draw(st.sets(st.integers(0, num_tokens), max_size=8))
    edges = sorted({0, *cuts, num_tokens})
    owned: list[list[range]] = [[], [], []]
    for start, stop in draw(st.permutations(list(pairwise(edges)))):
        owned[draw(st.integers(0, 2))].append(range(start, stop))
    return owned


def positions(spans: Spans) -> torch.Tensor:
    """Positions by row."""
    return torch.tensor([at for span in spans for at in span], dtype=torch.int64)


def visible(
    queries: Spans, keys: Spans, causal: bool, documents: list[int] | None, num_tokens: int
) -> torch.Tensor:
    """The keys that each query sees, bool ``[S, T]``, by definition."""
    of_token = torch.zeros(num_tokens, dtype=torch.int64)
    for end in accumulate(documents or []):
        of_token[end:] += 1
    q, k = positions(queries)[:, None], positions(keys)[None]
    seen = of_token[q] == of_token[k]
    return seen & (k <= q) if causal else seen


def painted(tiles: tuple[Tile, ...], num_queries: int, num_keys: int) -> torch.Tensor:
    """How many tiles hold each pair, ``[S, T]``."""
    counts = torch.zeros(num_queries, num_keys, dtype=torch.int64)
    for tile in tiles:
        area = counts[tile.queries, tile.keys]
        assert area.numel() > 0 and tile.num_scores > 0, "no tile is empty"
        if tile.causal:
            assert area.shape[0] == area.shape[1], "a causal tile is square"
        pairs = torch.ones_like(area).tril() if tile.causal else torch.ones_like(area)
        assert int(pairs.sum()) == tile.num_scores
        area += pairs
    return counts


@given(st.data(), st.integers(0, 24), st.booleans())
def test_every_visible_pair_is_in_one_tile_and_no_hidden_one(
    data: st.DataObject, num_tokens: int, causal: bool
) -> None:
    documents = data.draw(document_lengths(num_tokens))
    mask = Mask.of(causal, documents, num_tokens)
    queries, keys = (
        TokenOrder(tuple(own), ascends=mask.hides).sorted
        for own in (data.draw(spans_of_owners(num_tokens))[0] for _ in range(2))
    )
    tiles = mask.tiles(queries, keys)
    seen = visible(queries, keys, causal, documents, num_tokens)
    assert torch.equal(painted(tiles, *seen.shape), seen.long())


@given(st.data(), st.integers(1, 6), st.integers(1, 4), st.integers(0, 60))
def test_zigzag_blocks_have_at_most_one_tile(
    data: st.DataObject, ring_degree: int, ulysses_degree: int, num_tokens: int
) -> None:
    """At most one for each document: packed documents do not multiply the calls of the kernel."""
    documents = data.draw(document_lengths(num_tokens))
    dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    shards = TokenShards.zigzag(documents or num_tokens, dims)
    mask = Mask.of(True, documents, num_tokens)
    schedule = AttentionTraffic(dims, shards, 1, 1, 1, mask).schedule
    for rank, step in product(range(ring_degree), range(ring_degree)):
        assert len(schedule.tiles(rank, step)) <= len(documents or [num_tokens])


def test_tiles_of_two_zigzag_ranks() -> None:
    """8 tokens in 4 chunks: rank 0 holds the first and the last, rank 1 those between."""
    first, second = (range(0, 2), range(6, 8)), (range(2, 6),)
    mask = Mask(causal=True)
    assert mask.tiles(first, first) == (Tile(slice(0, 4), slice(0, 4), True),)
    assert mask.tiles(second, second) == (Tile(slice(0, 4), slice(0, 4), True),)
    assert mask.tiles(first, second) == (Tile(slice(2, 4), slice(0, 4), False),)
    assert mask.tiles(second, first) == (Tile(slice(0, 4), slice(0, 2), False),)


def test_a_block_in_the_future_has_no_tiles() -> None:
    early, late = (range(0, 4),), (range(4, 8),)
    assert Mask(causal=True).tiles(early, late) == ()
    assert Mask(causal=True).tiles(late, early) == (Tile(slice(0, 4), slice(0, 4), False),)
    assert Mask.of(False, [4, 4], 8).tiles(early, late) == ()


def test_a_whole_block_is_one_tile_without_a_mask() -> None:
    spans = (range(5, 9), range(0, 2))  # in any order
    assert Mask().tiles(spans, spans) == (Tile(slice(0, 6), slice(0, 6), False),)
    assert Mask().tiles(spans, ()) == Mask(causal=True).tiles((), spans) == ()


@given(st.data(), st.integers(0, 24), st.booleans())
def test_an_order_of_tokens_and_its_inverse(
    data: st.DataObject, num_tokens: int, ascends: bool
) -> None:
    for own in data.draw(spans_of_owners(num_tokens)):
        order = TokenOrder(tuple(own), ascends)
        held = positions(order.held)
        taken = _in_order(held, order.to_ascending)
        assert torch.equal(taken, held.sort().values if ascends else held)
        assert torch.equal(positions(order.sorted), taken)
        assert torch.equal(_in_order(taken, order.to_held), held)
        assert all(a.stop != b.start for a, b in pairwise(order.sorted))
        if torch.equal(taken, held):
            assert order.to_ascending == order.to_held == (), "nothing is copied"


def _in_order(rows: torch.Tensor, slices: tuple[slice, ...]) -> torch.Tensor:
    return torch.cat([rows[each] for each in slices]) if slices else rows


@pytest.mark.parametrize(
    ("causal", "lengths", "message"),
    [
        (1, None, "causal=1 must be True or False"),
        (True, 7, "document_lengths=7 must be a list of whole numbers"),
        (True, [3, 0, 4], "document_lengths has 0: each must be a whole number of at least 1"),
        (True, [3, -1, 5], "document_lengths has -1: each"),
        (True, [3, True, 3], "document_lengths has True: each"),
        (True, [3, 4.0], "document_lengths has 4.0: each"),
        (True, [3, 3], "add up to 6 tokens, the sequence has 7: pass the length of each"),
        (True, [], "add up to 0 tokens, the sequence has 7"),
    ],
)
def test_masks_that_cannot_be_are_refused(causal: bool, lengths: list[int], message: str) -> None:
    with pytest.raises(TensorError, match=message):
        Mask.of(causal, lengths, 7)


def test_a_single_document_is_no_mask() -> None:
    assert Mask.of(False, [7], 7) == Mask() and not Mask().hides
    assert Mask.of(False, [], 0) == Mask.of(False, None, 7) == Mask()
    assert Mask.of(False, [3, 4], 7).hides and Mask(causal=True).hides
