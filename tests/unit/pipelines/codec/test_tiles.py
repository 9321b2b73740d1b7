"""Tiling, load balancing and blending on one rank.

Bit-identical to diffusers in float32: the same tiles, computed one at a time by the same kernels,
are blended by the same sums.
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
from longtake.pipelines.codec.decode import TileRun, decode_videos
from longtake.pipelines.codec.tile_blender import blend_
from longtake.pipelines.codec.tiles import TilePlan, overlapping_spans
from longtake.pipelines.models.hunyuan_video.spec import TILE_SIZE, TILE_STRIDE
from tests.decoding import (
    SIZE,
    STRIDE,
    Direction,
    diffusers_output,
    make_coder,
    random_videos,
    run_tiled,
    tiling,
    vae,
)
from tests.rendering import ALONE

LATENTS = [
    (1, 4, 1, 8, 8),  # one frame, no larger than a tile
    (1, 4, 1, 8, 9),  # as high as a tile, one wider: tiled in both directions
    (1, 4, 2, 8, 8),  # as long as a tile
    (1, 4, 3, 3, 30),
    (1, 4, 4, 7, 1),
    (2, 4, 8, 13, 5),  # two videos; the last tile in time adds no frames
    (1, 4, 9, 1, 12),
]
PIXELS = [
    (1, 3, 1, 32, 32),
    (1, 3, 1, 36, 100),  # a picture
    (2, 3, 9, 40, 32),
    (1, 3, 13, 16, 48),
]


def error(shape: tuple[int, ...], options: Any, direction: Direction, **settings: Any) -> float:
    videos = random_videos(sum(shape), shape, direction)
    values = run_tiled(make_coder(options, direction), videos, ALONE, **settings)
    assert values is not None
    expected = diffusers_output(videos, options, direction)
    assert values.shape == expected.shape
    return (values - expected).abs().max().item()


@pytest.mark.parametrize(
    ("shape", "direction"),
    [(shape, "decode") for shape in LATENTS] + [(shape, "encode") for shape in PIXELS],
    ids=str,
)
@pytest.mark.parametrize("mode", ["tiled", "framewise", "whole"])
def test_output_is_bit_identical_to_diffusers(shape: Any, direction: Direction, mode: Any) -> None:
    options = tiling(None, None, mode) if mode == "whole" else tiling(SIZE, STRIDE, mode)
    assert error(shape, options, direction) == 0


@given(
    frames=st.integers(1, 8),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    tiles=st.tuples(*[st.tuples(st.integers(1, 5), st.integers(1, 5)) for _ in range(3)]),
    direction=st.sampled_from(["decode", "encode"]),
)
@settings(max_examples=25, deadline=None, print_blob=True)
def test_any_shape_and_tiling(
    frames: int, rows: int, columns: int, tiles: Any, direction: Direction
) -> None:
    sizes = [(max(pair), min(pair)) for pair in tiles]
    size, stride = zip(*((4 * large, 4 * small) for large, small in sizes), strict=True)
    if direction == "decode":
        shape = (1, 4, frames, rows, columns)
    else:
        shape = (1, 3, 4 * frames - 3, 4 * rows, 4 * columns)
    assert error(shape, tiling(size, stride), direction) == 0


def test_default_tiles_match_diffusers() -> None:
    with torch.device("meta"):
        model = AutoencoderKLHunyuanVideo()
    for name, values in (("min", TILE_SIZE), ("stride", TILE_STRIDE)):
        for axis, value in zip(("num_frames", "height", "width"), values, strict=True):
            assert getattr(model, f"tile_sample_{name}_{axis}") == value


def test_tile_of_a_single_overlapping_frame_is_skipped() -> None:
    """diffusers decodes it and drops its only frame."""
    spans = overlapping_spans(7, 4, 3, lambda cells: 4 * cells - 3, first=1)
    assert [(span.input_slice.start, span.input_slice.stop) for span in spans] == [(0, 5), (3, 7)]
    assert sum(span.keep for span in spans) == 25


def test_cost_includes_trimmed_values() -> None:
    """All tiles in time but the first drop their first frame."""
    in_time = overlapping_spans(5, 2, 2, lambda cells: 4 * cells - 3, first=1)
    in_space = overlapping_spans(5, 4, 3, lambda cells: 8 * cells)
    plan = TilePlan((in_time, in_space, in_space), 1, 1)
    costs = {tile.index: tile.cost for tile in plan.tiles}
    assert costs[0, 0, 0] == 9 * 32 * 32
    assert costs[1, 0, 1] == 9 * 32 * 16  # 8 frames and a dropped one


@given(
    latents=st.tuples(st.integers(1, 12), st.integers(1, 40), st.integers(1, 40)),
    num_videos=st.integers(1, 3),
    num_ranks=st.integers(1, 9),
)
@example(latents=(1, 20, 5), num_videos=1, num_ranks=4)  # 768, not 640, if assigned in order
@settings(deadline=None)
def test_load_is_balanced_over_ranks(latents: Any, num_videos: int, num_ranks: int) -> None:
    """Bound of longest-processing-time: without its cheapest tile, no rank has more work than any
    other. Each part of the video is spread over all ranks."""
    spans = make_coder(tiling(), "decode").spans(latents)
    plan = TilePlan(spans, num_videos, num_ranks)
    costs = [tile.cost for tile in plan.tiles]
    own = [[tile.cost for tile in plan.tiles_of(rank)] for rank in range(num_ranks)]
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
def test_blending_is_bit_identical_to_diffusers(dtype: torch.dtype, extent: int) -> None:
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


def test_batched_tiles_are_close() -> None:
    """Not bit-identical: torch uses other kernels for batches."""
    for shape in LATENTS:
        assert error(shape, tiling(), "decode", tiles_at_once=3) < 1e-4


def test_batch_is_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    options, sizes = tiling(), list[int]()
    coder = make_coder(options, "decode")
    code = coder.run

    def full(cells: torch.Tensor) -> torch.Tensor:
        sizes.append(len(cells))
        if len(cells) > 1:
            raise torch.OutOfMemoryError
        return code(cells)

    monkeypatch.setattr(coder, "run", full)
    videos = random_videos(0, (1, 4, 1, 8, 20), "decode")
    values = run_tiled(coder, videos, ALONE, tiles_at_once=4)
    assert values is not None
    assert torch.equal(values, diffusers_output(videos, options, "decode"))
    assert sizes == [4, 2, *[1] * 10]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_frames_are_refused(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    coder = make_coder(tiling(), "decode")
    monkeypatch.setattr(coder, "run", lambda cells: torch.full((1, 3, 1, 8, 8), value))
    latents = random_videos(0, (1, 4, 1, 2, 2), "decode")
    with pytest.raises(EngineError, match="the decoded frames are not finite"):
        decode_videos(TileRun(coder, latents, ALONE), lambda *frame: None)
