"""Sharded weights and several ranks with feed-forwards over chunks of tokens."""

from __future__ import annotations

import pytest

from longtake.parallel import ParallelDims
from tests import chunking
from tests.chunking import CASES, new_denoiser
from tests.layouts import layout_name
from tests.ranks import RankGroups
from tests.rendering import ONE_RANK

LAYOUTS = [ParallelDims(ulysses_degree=2), ParallelDims(ring_degree=3)]


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_sharded_chunks_match_one_rank(ranks: RankGroups, dims: ParallelDims) -> None:
    """Ranks have different numbers of chunks, and all gather the same weights."""
    expected = [chunking.velocity(case, ONE_RANK, new_denoiser(case, None)) for case in CASES]
    results = ranks.run(dims.world_size, chunking.sharded_velocities, CASES, 9, dims)
    for found in results:
        for case, one, many in zip(CASES, expected, found, strict=True):
            assert (one - many).abs().max() < 1e-5, case
