"""Functions that ranks run in the tests of tiled decoding; diffusers is the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch

from benchmarks.memory import peak_memory
from benchmarks.traffic import TrafficMeter
from longtake.configs.field_types import DecodeMode
from longtake.configs.request import ResolvedDecode
from longtake.errors import Stopped
from longtake.parallel import World
from longtake.pipelines.codec.decode import (
    TileRun,
    decode_videos,
    encode_videos,
    run_tiles,
)
from longtake.pipelines.codec.tiles import Spans, TileCoder, overlapping_spans
from longtake.pipelines.models.hunyuan_video.codec.autoencoder import (
    HunyuanVideoDecoder,
    HunyuanVideoEncoder,
)
from longtake.pipelines.runtime.stages import StageReport, stage
from tests import tiny
from tests.rendering import world

Sizes = tuple[int, int, int]
Direction = Literal["decode", "encode"]

SIZE: Sizes = (8, 32, 32)
STRIDE: Sizes = (4, 24, 16)


def tiling(
    size: Sizes | None = SIZE, stride: Sizes | None = STRIDE, mode: DecodeMode = "tiled"
) -> ResolvedDecode:
    """A request for a tiling; its other fields do not matter."""
    return ResolvedDecode(
        decode=mode,
        decode_tile_size=size,
        decode_tile_stride=stride,
        fps=8,
        height=16,
        width=16,
        num_frames=1,
    )


@cache
def vae() -> Any:
    """A tiny autoencoder, identical in every process: 4 channels, 4 x 4 pixels, 4 frames."""
    return tiny.autoencoder(
        block_out_channels=(8, 8, 8),
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        spatial_compression_ratio=4,
        scaling_factor=0.5,
    )


@torch.no_grad()
def diffusers_output(
    videos: torch.Tensor, options: ResolvedDecode, direction: Direction
) -> torch.Tensor:
    """Encode or decode videos with diffusers, one after the other."""
    model = vae()
    model.use_tiling = options.decode == "tiled"
    model.use_framewise_decoding = model.use_framewise_encoding = options.decode != "whole"
    if options.decode_tile_size is not None and options.decode_tile_stride is not None:
        for name, values in (
            ("min", options.decode_tile_size),
            ("stride", options.decode_tile_stride),
        ):
            for axis, value in zip(("num_frames", "height", "width"), values, strict=True):
                setattr(model, f"tile_sample_{name}_{axis}", value)
    if direction == "decode":
        scale = model.config.scaling_factor
        return torch.cat([model.decode(each[None] / scale).sample for each in videos])
    return torch.cat([model.encode(each[None]).latent_dist.parameters for each in videos])


def make_coder(options: ResolvedDecode, direction: Direction) -> TileCoder:
    return (HunyuanVideoDecoder if direction == "decode" else HunyuanVideoEncoder)(vae(), options)


@torch.no_grad()
def run_tiled(
    coder: TileCoder,
    videos: torch.Tensor,
    world: World,
    stop_requested: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> torch.Tensor | None:
    """The whole output, ``[B, C, f, h, w]``, on rank 0; None on other ranks."""
    parts: list[list[torch.Tensor]] = [[] for _ in videos]

    def take(video: int, values: torch.Tensor) -> bool:
        parts[video].append(values.clone())
        return True

    run_tiles(TileRun(coder, videos, world, stop_requested=stop_requested, **settings), take)
    if world.rank != 0:
        assert not any(parts)
        return None
    return torch.stack([torch.cat(each, dim=1) for each in parts])


def random_videos(seed: int, shape: Sequence[int], direction: Direction) -> torch.Tensor:
    """Normally distributed latents, or pixels in [-1, 1]; identical on every rank."""
    generator = torch.Generator().manual_seed(seed)
    if direction == "decode":
        return torch.randn(tuple(shape), generator=generator)
    return torch.rand(tuple(shape), generator=generator) * 2 - 1


Case = tuple[tuple[int, ...], ResolvedDecode, Direction]


def errors(cases: Sequence[Case]) -> list[float | None]:
    """On a rank: the largest difference from diffusers of each case; None on ranks other than 0."""
    found: list[float | None] = []
    for seed, (shape, options, direction) in enumerate(cases):
        videos = random_videos(seed, shape, direction)
        values = run_tiled(make_coder(options, direction), videos, world())
        if values is None:
            found.append(None)
            continue
        expected = diffusers_output(videos, options, direction)
        assert values.shape == expected.shape
        assert expected.std() > 0.01
        found.append((values - expected).abs().max().item())
    return found


def encoding_error(shape: Sequence[int]) -> float:
    """On a rank: the largest difference of the moments from diffusers."""
    pixels = random_videos(0, shape, "encode")
    moments = encode_videos(make_coder(tiling(), "encode"), pixels, world())
    expected = diffusers_output(pixels, tiling(), "encode")
    assert moments.shape == expected.shape
    return (moments - expected).abs().max().item()


def stop_then_decode(stopping_rank: int, after: int) -> tuple[bool, list[float | None]]:
    """On a rank: decode until one rank requests a stop after some tiles, then decode again.

    Returns:
        Whether the first decode was stopped, and the errors of the second.
    """
    tiles = 0

    def stop() -> bool:
        nonlocal tiles
        tiles += 1
        return world().rank == stopping_rank and tiles > after

    videos = random_videos(0, (1, 4, 9, 20, 20), "decode")
    try:
        run_tiled(make_coder(tiling(), "decode"), videos, world(), stop)
        stopped = False
    except Stopped:
        stopped = True
    return stopped, errors([((1, 4, 3, 9, 9), tiling(), "decode")])


def traffic(shape: Sequence[int], options: ResolvedDecode) -> tuple[int, dict[str, int]]:
    """On a rank: bytes sent and calls of torch.distributed; checks the report against them."""
    report = StageReport()
    with TrafficMeter() as meter, stage(report, "decoding"):
        run_tiled(make_coder(options, "decode"), random_videos(0, shape, "decode"), world())
    assert report.bytes_sent == {"decoding": meter.bytes_sent}
    return meter.bytes_sent, dict(meter.calls)


class Enlarger(TileCoder):
    """A fake autoencoder that needs almost no time or memory."""

    channels, dtype = 3, torch.float32

    def spans(self, shape: Sequence[int]) -> Spans:
        frames, rows, columns = shape
        return (
            overlapping_spans(frames, 4, 3, lambda cells: 4 * cells - 3, first=1),
            overlapping_spans(rows, 16, 12, lambda cells: 16 * cells),
            overlapping_spans(columns, 16, 12, lambda cells: 16 * cells),
        )

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        frames, rows, columns = tiles.shape[2:]
        size = (4 * frames - 3, 16 * rows, 16 * columns)
        return torch.nn.functional.interpolate(tiles[:, :3], size)


def peak_while_decoding(num_latent_frames: int) -> tuple[int, int]:
    """On a rank: peak memory of decoding, and total size of the frames, in bytes."""
    latents = torch.rand(1, 4, num_latent_frames, 24, 24)
    written = 0

    def take(video: int, index: int, frame: torch.Tensor) -> None:
        nonlocal written
        written += frame.nbytes

    with peak_memory("cpu") as peak:
        decode_videos(TileRun(Enlarger(), latents, world()), take)
    return peak(), written
