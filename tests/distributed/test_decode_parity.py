"""Any number of ranks decodes and encodes to diffusers' own bits, and can stop in between.

The tolerance is 0: every tile goes through the same kernels as in diffusers, on one thread.
"""

from __future__ import annotations

from typing import Any

import pytest

from longtake.pipelines.tiles import TilePlan
from tests.decoding import (
    Case,
    coder_of,
    error_of_encoding,
    errors,
    how,
    peak_of_writing,
    stopped_then_right,
    traffic,
)
from tests.ranks import RankGroups

CASES: list[Case] = [
    ((1, 4, 9, 20, 13), how(), "decode"),  # sizes that are no multiple of the stride
    ((1, 4, 5, 8, 8), how(), "decode"),  # tiles in time alone
    ((1, 4, 1, 8, 8), how(), "decode"),  # one tile, and one frame
    ((1, 4, 1, 9, 8), how(), "decode"),  # a picture
    ((3, 4, 4, 3, 10), how(), "decode"),  # three videos
    ((1, 4, 6, 17, 6), how((4, 16, 24), (4, 12, 24)), "decode"),  # no overlap in two directions
    ((1, 4, 6, 17, 6), how(mode="framewise"), "decode"),
    ((2, 4, 3, 6, 6), how(None, None, "whole"), "decode"),
    ((1, 3, 1, 100, 60), how(), "encode"),
    ((2, 3, 13, 36, 40), how(), "encode"),
]


@pytest.mark.parametrize("world_size", range(1, 7))
def test_the_bits_are_those_of_diffusers(ranks: RankGroups, world_size: int) -> None:
    """With more ranks than tiles, and fewer."""
    found, *others = ranks.run(world_size, errors, CASES)
    assert found == [0] * len(CASES)
    assert others == [[None] * len(CASES)] * (world_size - 1)


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_rank_gets_what_is_encoded(ranks: RankGroups, world_size: int) -> None:
    for shape in ((1, 3, 1, 100, 60), (2, 3, 9, 36, 40)):
        assert ranks.run(world_size, error_of_encoding, shape) == [0] * world_size


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("asked_by", [0, 1])
@pytest.mark.parametrize("after", [0, 3])
def test_all_stop_alike_and_can_go_on(
    ranks: RankGroups, world_size: int, asked_by: int, after: int
) -> None:
    for rank, (stopped, found) in enumerate(
        ranks.run(world_size, stopped_then_right, asked_by, after)
    ):
        assert stopped
        assert found == [0 if rank == 0 else None]


def test_a_rank_that_asks_too_late_stops_nobody(ranks: RankGroups) -> None:
    assert not any(stopped for stopped, _ in ranks.run(2, stopped_then_right, 1, 10_000))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_longer_video_takes_no_more_memory(ranks: RankGroups, world_size: int) -> None:
    """Of the writing rank, for four times the frames: less than 1.3 times, where all would be 4.

    The lesser of two, since what the allocator keeps differs by a tenth from time to time.
    """
    ranks.run(world_size, peak_of_writing, 33)  # takes what lasts
    short, _ = ranks.run(world_size, peak_of_writing, 33)[0]
    long, written = min(ranks.run(world_size, peak_of_writing, 129)[0] for _ in range(2))
    assert written == (4 * 129 - 3) * 384 * 384 * 3 * 4
    assert long < 1.3 * short
    assert long < written / 3


@pytest.mark.parametrize("world_size", [2, 3])
def test_what_travels_are_the_tiles(ranks: RankGroups, world_size: int) -> None:
    """Each of another rank's tiles once, trimmed, and a byte with it; a byte to each at the end."""
    shape, asked = (1, 4, 9, 20, 13), how()
    plan = TilePlan(coder_of(asked, "decode").spans(shape[2:]), 1, world_size)
    for rank, (sent, calls) in enumerate(ranks.run(world_size, traffic, shape, asked)):
        own: Any = plan.of_rank(rank)
        if rank == 0:
            assert (sent, calls) == (world_size - 1, {"send": world_size - 1, "recv_": recv(plan)})
        else:
            sizes = [3 * a * b * c * 4 for a, b, c in (tile.values_shape for tile in own)]
            assert (sent, calls) == (sum(sizes) + len(own), {"send": len(own), "recv_": 1})


def recv(plan: TilePlan) -> int:
    """Tiles that rank 0 does not compute."""
    return len(plan.tiles) - len(plan.of_rank(0))
