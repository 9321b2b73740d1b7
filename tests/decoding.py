"""Tiled decoding and encoding of a tiny autoencoder, on a rank and by diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch

from benchmarks.memory import peak_memory
from benchmarks.traffic import TrafficMeter
from longtake.configs.request import DecodeMode, ResolvedDecode
from longtake.errors import Stopped
from longtake.parallel import World
from longtake.pipelines.decode import (
    DecodeRun,
    TileRun,
    decode_videos,
    encode_videos,
    run_tiles,
)
from longtake.pipelines.hunyuan_video.autoencoder import HunyuanVideoDecoder, HunyuanVideoEncoder
from longtake.pipelines.stages import StageReport, stage
from longtake.pipelines.tiles import Spans, TileCoder, overlapping
from tests import tiny
from tests.rendering import world

Sizes = tuple[int, int, int]
Direction = Literal["decode", "encode"]

SIZE: Sizes = (8, 32, 32)
STRIDE: Sizes = (4, 24, 16)


def how(
    size: Sizes | None = SIZE, stride: Sizes | None = STRIDE, mode: DecodeMode = "tiled"
) -> ResolvedDecode:
    """A request with given tiles."""
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
    """A tiny autoencoder, the same in every process; one latent is 4 x 4 pixels."""
    return tiny.autoencoder(
        block_out_channels=(8, 8, 8),
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        spatial_compression_ratio=4,
        scaling_factor=0.5,
    )


@torch.no_grad()
def of_diffusers(
    videos: torch.Tensor, request: ResolvedDecode, direction: Direction
) -> torch.Tensor:
    """Latents decoded or pixels encoded by diffusers, one video at a time, in the same tiles."""
    model = vae()
    model.use_tiling = request.decode == "tiled"
    model.use_framewise_decoding = model.use_framewise_encoding = request.decode != "whole"
    if request.decode_tile_size is not None and request.decode_tile_stride is not None:
        for name, values in (
            ("min", request.decode_tile_size),
            ("stride", request.decode_tile_stride),
        ):
            for axis, value in zip(("num_frames", "height", "width"), values, strict=True):
                setattr(model, f"tile_sample_{name}_{axis}", value)
    if direction == "decode":
        scale = model.config.scaling_factor
        return torch.cat([model.decode(each[None] / scale).sample for each in videos])
    return torch.cat([model.encode(each[None]).latent_dist.parameters for each in videos])


def coder_of(request: ResolvedDecode, direction: Direction) -> TileCoder:
    return (HunyuanVideoDecoder if direction == "decode" else HunyuanVideoEncoder)(vae(), request)


@torch.no_grad()
def in_tiles(
    coder: TileCoder,
    videos: torch.Tensor,
    world: World,
    stop_requested: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> torch.Tensor | None:
    """The whole output on rank 0, ``[B, C, F, H, W]``; None on others."""
    parts: list[list[torch.Tensor]] = [[] for _ in videos]

    def receive(video: int, values: torch.Tensor) -> bool:
        parts[video].append(values.clone())
        return True

    run_tiles(TileRun(coder, videos, world, receive, stop_requested=stop_requested, **settings))
    if world.rank != 0:
        assert not any(parts)
        return None
    return torch.stack([torch.cat(each, dim=1) for each in parts])


def random_videos(seed: int, shape: Sequence[int], direction: Direction) -> torch.Tensor:
    """Normally distributed latents, or uniform pixels in [-1, 1]; the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    if direction == "decode":
        return torch.randn(tuple(shape), generator=generator)
    return torch.rand(tuple(shape), generator=generator) * 2 - 1


Case = tuple[tuple[int, ...], ResolvedDecode, Direction]


def errors(cases: Sequence[Case]) -> list[float | None]:
    """On a rank: the largest difference from diffusers, by case; None on ranks other than 0."""
    found: list[float | None] = []
    for seed, (shape, request, direction) in enumerate(cases):
        videos = random_videos(seed, shape, direction)
        values = in_tiles(coder_of(request, direction), videos, world())
        if values is None:
            found.append(None)
            continue
        expected = of_diffusers(videos, request, direction)
        assert values.shape == expected.shape
        assert expected.std() > 0.01
        found.append((values - expected).abs().max().item())
    return found


def error_of_encoding(shape: Sequence[int]) -> float:
    """On a rank: the largest difference of the encoded moments from diffusers."""
    pixels = random_videos(0, shape, "encode")
    moments = encode_videos(coder_of(how(), "encode"), pixels, world())
    expected = of_diffusers(pixels, how(), "encode")
    assert moments.shape == expected.shape
    return (moments - expected).abs().max().item()


def stopped_then_right(stopping_rank: int, after: int) -> tuple[bool, list[float | None]]:
    """On a rank: decode until a rank requests a stop after some tiles, then decode again.

    Returns:
        Whether the first decoding was stopped, and the errors of the second.
    """
    tiles = 0

    def stop() -> bool:
        nonlocal tiles
        tiles += 1
        return world().rank == stopping_rank and tiles > after

    videos = random_videos(0, (1, 4, 9, 20, 20), "decode")
    try:
        in_tiles(coder_of(how(), "decode"), videos, world(), stop)
        stopped = False
    except Stopped:
        stopped = True
    return stopped, errors([((1, 4, 3, 9, 9), how(), "decode")])


def traffic(shape: Sequence[int], request: ResolvedDecode) -> tuple[int, dict[str, int]]:
    """On a rank: bytes sent and calls of torch.distributed; the report states the same bytes."""
    report = StageReport()
    with TrafficMeter() as meter, stage(report, "decoding"):
        in_tiles(coder_of(request, "decode"), random_videos(0, shape, "decode"), world())
    assert report.bytes_sent == {"decoding": meter.bytes_sent}
    return meter.bytes_sent, dict(meter.calls)


class Enlarger(TileCoder):
    """Replaces an autoencoder: needs almost no time and memory."""

    channels, dtype = 3, torch.float32

    def spans(self, shape: Sequence[int]) -> Spans:
        frames, rows, columns = shape
        return (
            overlapping(frames, 4, 3, lambda cells: 4 * cells - 3, first=1),
            overlapping(rows, 16, 12, lambda cells: 16 * cells),
            overlapping(columns, 16, 12, lambda cells: 16 * cells),
        )

    def code(self, cells: torch.Tensor) -> torch.Tensor:
        frames, rows, columns = cells.shape[2:]
        size = (4 * frames - 3, 16 * rows, 16 * columns)
        return torch.nn.functional.interpolate(cells[:, :3], size)


def peak_of_writing(num_latent_frames: int) -> tuple[int, int]:
    """On a rank: peak memory of decoding some latent frames, and size of the frames, in bytes."""
    latents = torch.rand(1, 4, num_latent_frames, 24, 24)
    written = 0

    def receive(video: int, index: int, frame: torch.Tensor) -> None:
        nonlocal written
        written += frame.nbytes

    with peak_memory("cpu") as peak:
        decode_videos(DecodeRun(Enlarger(), latents, world(), receive))
    return peak(), written
