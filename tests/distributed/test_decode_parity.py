"""Decoding and encoding on any number of ranks: parity with diffusers, stopping, memory, traffic.

The tolerance is 0: every tile runs through the same kernels as in diffusers, on one thread.
"""

from __future__ import annotations

from typing import Any

import pytest

from longtake.pipelines.codec.tiles import TilePlan
from tests.decoding import (
    Case,
    encoding_error,
    errors,
    make_coder,
    peak_while_decoding,
    stop_then_decode,
    tiling,
    traffic,
)
from tests.ranks import RankGroups

CASES: list[Case] = [
    ((1, 4, 9, 20, 13), tiling(), "decode"),  # sizes are not multiples of the stride
    ((1, 4, 5, 8, 8), tiling(), "decode"),  # tiled in time only
    ((1, 4, 1, 8, 8), tiling(), "decode"),  # one tile of one frame
    ((1, 4, 1, 9, 8), tiling(), "decode"),  # a picture
    ((3, 4, 4, 3, 10), tiling(), "decode"),  # three videos
    ((1, 4, 6, 17, 6), tiling((4, 16, 24), (4, 12, 24)), "decode"),  # no overlap in two directions
    ((1, 4, 6, 17, 6), tiling(mode="framewise"), "decode"),
    ((2, 4, 3, 6, 6), tiling(None, None, "whole"), "decode"),
    ((1, 3, 1, 100, 60), tiling(), "encode"),
    ((2, 3, 13, 36, 40), tiling(), "encode"),
]


@pytest.mark.parametrize("world_size", range(1, 7))
def test_decoding_is_bit_identical_to_diffusers(ranks: RankGroups, world_size: int) -> None:
    """With fewer and with more ranks than tiles."""
    found, *others = ranks.run(world_size, errors, CASES)
    assert found == [0] * len(CASES)
    assert others == [[None] * len(CASES)] * (world_size - 1)


@pytest.mark.parametrize("world_size", [1, 3])
def test_encoding_returns_the_moments_on_every_rank(ranks: RankGroups, world_size: int) -> None:
    for shape in ((1, 3, 1, 100, 60), (2, 3, 9, 36, 40)):
        assert ranks.run(world_size, encoding_error, shape) == [0] * world_size


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("stopping_rank", [0, 1])
@pytest.mark.parametrize("after", [0, 3])
def test_all_ranks_stop_together_and_can_decode_again(
    ranks: RankGroups, world_size: int, stopping_rank: int, after: int
) -> None:
    for rank, (stopped, found) in enumerate(
        ranks.run(world_size, stop_then_decode, stopping_rank, after)
    ):
        assert stopped
        assert found == [0 if rank == 0 else None]


def test_stop_request_after_the_last_tile_is_ignored(ranks: RankGroups) -> None:
    assert not any(stopped for stopped, _ in ranks.run(2, stop_then_decode, 1, 10_000))


@pytest.mark.parametrize("world_size", [1, 2])
def test_peak_memory_does_not_grow_with_the_length(ranks: RankGroups, world_size: int) -> None:
    """Rank 0's peak grows less than 1.3-fold for four times the frames.

    The minimum of two runs, because the allocator's caches vary by a tenth.
    """
    ranks.run(world_size, peak_while_decoding, 33)  # warm up
    short, _ = ranks.run(world_size, peak_while_decoding, 33)[0]
    long, written = min(ranks.run(world_size, peak_while_decoding, 129)[0] for _ in range(2))
    assert written == (4 * 129 - 3) * 384 * 384 * 3 * 4
    assert long < 1.3 * short
    assert long < written / 3


@pytest.mark.parametrize("world_size", [2, 3])
def test_only_tiles_are_sent(ranks: RankGroups, world_size: int) -> None:
    """Each other rank sends its trimmed tiles with a byte each; rank 0 sends a final byte."""
    shape, options = (1, 4, 9, 20, 13), tiling()
    plan = TilePlan(make_coder(options, "decode").spans(shape[2:]), 1, world_size)
    for rank, (sent, calls) in enumerate(ranks.run(world_size, traffic, shape, options)):
        own: Any = plan.tiles_of(rank)
        if rank == 0:
            assert (sent, calls) == (
                world_size - 1,
                {"send": world_size - 1, "recv_": num_received(plan)},
            )
        else:
            sizes = [3 * a * b * c * 4 for a, b, c in (tile.output_shape for tile in own)]
            assert (sent, calls) == (sum(sizes) + len(own), {"send": len(own), "recv_": 1})


def num_received(plan: TilePlan) -> int:
    """Number of tiles that rank 0 receives."""
    return len(plan.tiles) - len(plan.tiles_of(0))
