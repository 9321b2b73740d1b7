"""Tiles on one rank: the geometry and the bits of diffusers; who computes what; how they are mixed.

Bit-equal in float32: the same tiles, one at a time, through the same kernels, mixed by the same
sums.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longtake.errors import EngineError
from longtake.pipelines.decode import DecodeRun, decode_videos
from longtake.pipelines.hunyuan_video.spec import TILE_SIZE, TILE_STRIDE
from longtake.pipelines.tile_blender import blend_
from longtake.pipelines.tiles import TilePlan, overlapping
from tests.decoding import (
    SIZE,
    STRIDE,
    Direction,
    coder_of,
    how,
    in_tiles,
    of_diffusers,
    random_videos,
    vae,
)
from tests.rendering import ALONE

LATENTS = [
    (1, 4, 1, 8, 8),  # one frame, no larger than a tile
    (1, 4, 1, 8, 9),  # as high as a tile, a little wider: tiles in both directions
    (1, 4, 2, 8, 8),  # as long as a tile
    (1, 4, 3, 3, 30),
    (1, 4, 4, 7, 1),
    (2, 4, 8, 13, 5),  # two videos; the last tile in time has nothing of its own
    (1, 4, 9, 1, 12),
]
PIXELS = [
    (1, 3, 1, 32, 32),
    (1, 3, 1, 36, 100),  # a picture
    (2, 3, 9, 40, 32),
    (1, 3, 13, 16, 48),
]


def error(shape: tuple[int, ...], asked: Any, direction: Direction, **options: Any) -> float:
    videos = random_videos(sum(shape), shape, direction)
    values = in_tiles(coder_of(asked, direction), videos, ALONE, **options)
    assert values is not None
    expected = of_diffusers(videos, asked, direction)
    assert values.shape == expected.shape
    return (values - expected).abs().max().item()


@pytest.mark.parametrize(
    ("shape", "direction"),
    [(shape, "decode") for shape in LATENTS] + [(shape, "encode") for shape in PIXELS],
    ids=str,
)
@pytest.mark.parametrize("mode", ["tiled", "framewise", "whole"])
def test_the_bits_are_those_of_diffusers(shape: Any, direction: Direction, mode: Any) -> None:
    asked = how(None, None, mode) if mode == "whole" else how(SIZE, STRIDE, mode)
    assert error(shape, asked, direction) == 0


@given(
    frames=st.integers(1, 8),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    tiles=st.tuples(*[st.tuples(st.integers(1, 5), st.integers(1, 5)) for _ in range(3)]),
    direction=st.sampled_from(["decode", "encode"]),
)
@settings(max_examples=25, deadline=None, print_blob=True)
def test_any_shape_and_any_tiles(
    frames: int, rows: int, columns: int, tiles: Any, direction: Direction
) -> None:
    sizes = [(max(pair), min(pair)) for pair in tiles]
    size, stride = zip(*((4 * large, 4 * small) for large, small in sizes), strict=True)
    if direction == "decode":
        shape = (1, 4, frames, rows, columns)
    else:
        shape = (1, 3, 4 * frames - 3, 4 * rows, 4 * columns)
    assert error(shape, how(size, stride), direction) == 0


def test_the_default_tiles_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        model = AutoencoderKLHunyuanVideo()
    for name, values in (("min", TILE_SIZE), ("stride", TILE_STRIDE)):
        for axis, value in zip(("num_frames", "height", "width"), values, strict=True):
            assert getattr(model, f"tile_sample_{name}_{axis}") == value


def test_a_tile_of_nothing_but_its_first_frame_is_left_out() -> None:
    """diffusers decodes it, drops the frame, and has nothing left."""
    spans = overlapping(7, 4, 3, lambda cells: 4 * cells - 3, first=1)
    assert [(span.cells.start, span.cells.stop) for span in spans] == [(0, 5), (3, 7)]
    assert sum(span.keep for span in spans) == 25


def test_a_tile_costs_all_values_that_are_computed_for_it() -> None:
    """With those that it drops: the first of each tile in time but the first one."""
    in_time = overlapping(5, 2, 2, lambda cells: 4 * cells - 3, first=1)
    in_space = overlapping(5, 4, 3, lambda cells: 8 * cells)
    plan = TilePlan((in_time, in_space, in_space), 1, 1)
    costs = {tile.place: tile.cost for tile in plan.tiles}
    assert costs[0, 0, 0] == 9 * 32 * 32
    assert costs[1, 0, 1] == 9 * 32 * 16  # 8 frames and one that is dropped


@given(
    latents=st.tuples(st.integers(1, 12), st.integers(1, 40), st.integers(1, 40)),
    num_videos=st.integers(1, 3),
    num_ranks=st.integers(1, 9),
)
@example(latents=(1, 20, 5), num_videos=1, num_ranks=4)  # 768, not 640, in their own order
@settings(deadline=None)
def test_ranks_finish_together(latents: Any, num_videos: int, num_ranks: int) -> None:
    """No rank has more to do than any other once its own cheapest tile is left out: the bound of
    longest-first, which no other order keeps. And each stretch is spread over all."""
    spans = coder_of(how(), "decode").spans(latents)
    plan = TilePlan(spans, num_videos, num_ranks)
    costs = [tile.cost for tile in plan.tiles]
    own = [[tile.cost for tile in plan.of_rank(rank)] for rank in range(num_ranks)]
    loads = list(map(sum, own))
    assert sum(loads) == sum(costs)
    assert all(sum(each) - min(each, default=0) <= min(loads) for each in own)
    kinds = len(set(costs))
    for at in range(1, len(costs)):
        so_far = [0] * num_ranks
        for owner, cost in zip(plan.owners[:at], costs[:at], strict=True):
            so_far[owner] += cost
        assert max(so_far) - min(so_far) <= max(costs) * kinds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("extent", [0, 1, 5, 16, 100])
def test_mixing_gives_the_bits_of_diffusers(dtype: torch.dtype, extent: int) -> None:
    model, blends = vae(), ("blend_t", "blend_v", "blend_h")
    for dim, blend in enumerate(blends, start=1):
        shapes = itertools.product((3, 16), repeat=2)
        for sizes in shapes:
            before, values = (
                random_videos(
                    dim + size, [size if each == dim else 7 for each in range(4)], "decode"
                ).to(dtype)
                for size in sizes
            )
            expected = getattr(model, blend)(before[None], values[None].clone(), extent)[0]
            blend_(before, values, extent, dim)
            assert torch.equal(values, expected)


def test_several_tiles_at_once_are_close() -> None:
    """Not to the bit: torch has other kernels for several."""
    for shape in LATENTS:
        assert error(shape, how(), "decode", tiles_at_once=3) < 1e-4


def test_memory_for_fewer_tiles_than_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, sizes = how(), list[int]()
    coder = coder_of(asked, "decode")
    code = coder.code

    def full(cells: torch.Tensor) -> torch.Tensor:
        sizes.append(len(cells))
        if len(cells) > 1:
            raise torch.OutOfMemoryError
        return code(cells)

    monkeypatch.setattr(coder, "code", full)
    videos = random_videos(0, (1, 4, 1, 8, 20), "decode")
    values = in_tiles(coder, videos, ALONE, tiles_at_once=4)
    assert values is not None
    assert torch.equal(values, of_diffusers(videos, asked, "decode"))
    assert sizes == [4, 2, *[1] * 10]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_no_frames(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    coder = coder_of(how(), "decode")
    monkeypatch.setattr(coder, "code", lambda cells: torch.full((1, 3, 1, 8, 8), value))
    latents = random_videos(0, (1, 4, 1, 2, 2), "decode")
    with pytest.raises(EngineError, match="the decoded frames are not finite"):
        decode_videos(DecodeRun(coder, latents, ALONE, lambda *frame: None))
