"""What a rank does in the tests of tiled decoding: tiles over ranks, and diffusers' own beside."""

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
    """A request of which the tiles alone matter."""
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
    """A tiny autoencoder, the same in every process: 4 channels, 4 x 4 pixels, 4 frames."""
    return tiny.autoencoder(
        block_out_channels=(8, 8, 8),
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        spatial_compression_ratio=4,
        scaling_factor=0.5,
    )


@torch.no_grad()
def of_diffusers(videos: torch.Tensor, asked: ResolvedDecode, direction: Direction) -> torch.Tensor:
    """What diffusers makes of latents or pixels, one video after the other, in tiles of its own."""
    model = vae()
    model.use_tiling = asked.decode == "tiled"
    model.use_framewise_decoding = model.use_framewise_encoding = asked.decode != "whole"
    if asked.decode_tile_size is not None and asked.decode_tile_stride is not None:
        for name, values in (("min", asked.decode_tile_size), ("stride", asked.decode_tile_stride)):
            for axis, value in zip(("num_frames", "height", "width"), values, strict=True):
                setattr(model, f"tile_sample_{name}_{axis}", value)
    if direction == "decode":
        scale = model.config.scaling_factor
        return torch.cat([model.decode(each[None] / scale).sample for each in videos])
    return torch.cat([model.encode(each[None]).latent_dist.parameters for each in videos])


def coder_of(asked: ResolvedDecode, direction: Direction) -> TileCoder:
    return (HunyuanVideoDecoder if direction == "decode" else HunyuanVideoEncoder)(vae(), asked)


@torch.no_grad()
def in_tiles(
    coder: TileCoder,
    videos: torch.Tensor,
    world: World,
    stop_requested: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> torch.Tensor | None:
    """All that comes out, on rank 0: ``[B, C, f, h, w]``."""
    parts: list[list[torch.Tensor]] = [[] for _ in videos]

    def take(video: int, values: torch.Tensor) -> bool:
        parts[video].append(values.clone())
        return True

    run_tiles(TileRun(coder, videos, world, take, stop_requested=stop_requested, **settings))
    if world.rank != 0:
        assert not any(parts)
        return None
    return torch.stack([torch.cat(each, dim=1) for each in parts])


def random_videos(seed: int, shape: Sequence[int], direction: Direction) -> torch.Tensor:
    """The same on every rank: latents of a normal distribution, or pixels in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    if direction == "decode":
        return torch.randn(tuple(shape), generator=generator)
    return torch.rand(tuple(shape), generator=generator) * 2 - 1


Case = tuple[tuple[int, ...], ResolvedDecode, Direction]


def errors(cases: Sequence[Case]) -> list[float | None]:
    """On a rank: the largest difference from diffusers of each case; None on other ranks than 0."""
    found: list[float | None] = []
    for seed, (shape, asked, direction) in enumerate(cases):
        videos = random_videos(seed, shape, direction)
        values = in_tiles(coder_of(asked, direction), videos, world())
        if values is None:
            found.append(None)
            continue
        expected = of_diffusers(videos, asked, direction)
        assert values.shape == expected.shape
        assert expected.std() > 0.01
        found.append((values - expected).abs().max().item())
    return found


def error_of_encoding(shape: Sequence[int]) -> float:
    """On a rank, each of which gets the moments: the largest difference from diffusers."""
    pixels = random_videos(0, shape, "encode")
    moments = encode_videos(coder_of(how(), "encode"), pixels, world())
    expected = of_diffusers(pixels, how(), "encode")
    assert moments.shape == expected.shape
    return (moments - expected).abs().max().item()


def stopped_then_right(asked_by: int, after: int) -> tuple[bool, list[float | None]]:
    """On a rank: decode until one rank wants to stop after some tiles, then decode again.

    Returns:
        Whether the first was stopped, and the errors of the second.
    """
    tiles = 0

    def stop() -> bool:
        nonlocal tiles
        tiles += 1
        return world().rank == asked_by and tiles > after

    videos = random_videos(0, (1, 4, 9, 20, 20), "decode")
    try:
        in_tiles(coder_of(how(), "decode"), videos, world(), stop)
        stopped = False
    except Stopped:
        stopped = True
    return stopped, errors([((1, 4, 3, 9, 9), how(), "decode")])


def traffic(shape: Sequence[int], asked: ResolvedDecode) -> tuple[int, dict[str, int]]:
    """On a rank: bytes and calls that torch.distributed was given; the report says the same."""
    report = StageReport()
    with TrafficMeter() as meter, stage(report, "decoding"):
        in_tiles(coder_of(asked, "decode"), random_videos(0, shape, "decode"), world())
    assert report.bytes_sent == {"decoding": meter.bytes_sent}
    return meter.bytes_sent, dict(meter.calls)


class Enlarger(TileCoder):
    """A stand-in for an autoencoder that takes next to no time or memory of its own."""

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
    """On a rank: bytes that decoding so many latent frames takes at most, and bytes of frames."""
    latents = torch.rand(1, 4, num_latent_frames, 24, 24)
    written = 0

    def take(video: int, index: int, frame: torch.Tensor) -> None:
        nonlocal written
        written += frame.nbytes

    with peak_memory("cpu") as peak:
        decode_videos(DecodeRun(Enlarger(), latents, world(), take))
    return peak(), written
