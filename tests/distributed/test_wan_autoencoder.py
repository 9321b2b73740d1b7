"""Wan's autoencoder on several ranks is bit-identical to diffusers', and so to one rank."""

from __future__ import annotations

import pytest

from tests.ranks import RankGroups
from tests.wan_coding import (
    KINDS,
    Case,
    condition_error,
    decoding_errors,
    encoding_errors,
    frame_error,
)

CASES: list[Case] = [
    case
    for kind in KINDS
    for case in (
        (kind, (1, 3, 5, 7), "tiled"),  # nine tiles
        (kind, (2, 2, 4, 3), "tiled"),  # two videos
        (kind, (1, 2, 5, 7), "whole"),  # one tile: other ranks have none
    )
]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_decoding(ranks: RankGroups, world_size: int) -> None:
    found, *others = ranks.run(world_size, decoding_errors, CASES)
    assert found == [0] * len(CASES)
    assert others == [[None] * len(CASES)] * (world_size - 1)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_frames(ranks: RankGroups, kind: str, world_size: int) -> None:
    """Frames are clamped to [0, 1], as diffusers clamps its pixels to [-1, 1]."""
    case = (kind, (2, 2, 4, 5), "tiled")
    assert ranks.run(world_size, frame_error, case) == [0] + [None] * (world_size - 1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_encoding_returns_the_latents_on_every_rank(ranks: RankGroups, world_size: int) -> None:
    assert ranks.run(world_size, encoding_errors, CASES) == [[0] * len(CASES)] * world_size


@pytest.mark.parametrize("world_size", [2, 3])
def test_condition_of_two_pictures(ranks: RankGroups, world_size: int) -> None:
    names = ["image", "last_image"]
    assert ranks.run(world_size, condition_error, names, 9) == [0] * world_size
