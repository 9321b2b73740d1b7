"""What a rank does in the decoding benchmark.

The autoencoder is a small HunyuanVideo autoencoder with random weights. All contestants use the
same tiling. A contestant decodes the latents of one video to float32 frames in [0, 1] on the CPU of
rank 0, where they are discarded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn

from benchmarks.contest import Contestant, Prepared, rank_device
from benchmarks.memory import peak_memory
from benchmarks.traffic import TrafficMeter
from longtake.configs.request import ResolvedDecode
from longtake.parallel import World
from longtake.pipelines.codec.decode import TileRun, decode_videos
from longtake.pipelines.models.hunyuan_video.codec.autoencoder import HunyuanVideoDecoder

OnFrame = Callable[[torch.Tensor], None]
Decode = Callable[[OnFrame], None]
"""Decodes the video and passes each frame, ``[height, width, 3]``, to a callback on rank 0."""


@dataclass(frozen=True)
class Setup:
    """Video, tiling and autoencoder of the benchmark.

    Attributes:
        channels: Output channels of the autoencoder's blocks.
        size: Frames, height and width of the video.
        tile_size: Frames, height and width of a tile.
        tile_stride: Distance between neighboring tiles, in frames, height and width.
        dtype: Name of the autoencoder's dtype.
    """

    channels: tuple[int, ...]
    size: tuple[int, int, int]
    tile_size: tuple[int, int, int]
    tile_stride: tuple[int, int, int]
    dtype: str

    def autoencoder(self, device: torch.device) -> Any:
        """The autoencoder with diffusers' tiling, identical on every rank."""
        torch.manual_seed(0)
        vae = AutoencoderKLHunyuanVideo(block_out_channels=self.channels, norm_num_groups=4)
        (frames, height, width), (in_time, down, across) = self.tile_size, self.tile_stride
        vae.enable_tiling(height, width, frames, down, across, in_time)
        # diffusers' own `to` warns about modules kept in float32, but the VAE has none
        return nn.Module.to(vae.eval().requires_grad_(False), device, getattr(torch, self.dtype))

    def latents(self, device: torch.device) -> torch.Tensor:
        """Random latents, ``[1, 16, F, H, W]``, identical on every rank."""
        frames, height, width = self.size
        shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)


def longtake_decode(vae: Any, latents: torch.Tensor, setup: Setup) -> Decode:
    """longtake's decoder, on all ranks."""
    world = World(latents.device, dist.group.WORLD, dist.group.WORLD)
    frames, height, width = setup.size
    request = ResolvedDecode(
        decode="tiled",
        decode_tile_size=setup.tile_size,
        decode_tile_stride=setup.tile_stride,
        fps=24,
        num_frames=frames,
        height=height,
        width=width,
    )
    decoder = HunyuanVideoDecoder(vae, request)

    def decode(on_frame: OnFrame) -> None:
        decode_videos(TileRun(decoder, latents, world), lambda video, index, frame: on_frame(frame))

    return decode


def diffusers_decode(vae: Any, latents: torch.Tensor, setup: Setup) -> Decode:
    """diffusers' decoder, on one rank."""
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor

    def decode(on_frame: OnFrame) -> None:
        pixels = vae.decode(scaled, return_dict=False)[0][0]
        if dist.get_rank() == 0:
            frames = (pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).float().cpu()
            for frame in frames:
                on_frame(frame)

    return decode


def cache_dit_decode(vae: Any, latents: torch.Tensor, setup: Setup) -> Decode:
    """cache-dit's tile parallelism, by its planner: its entry point requires an accelerator."""
    from cache_dit.distributed.autoencoders.autoencoder_kl_hunyuanvideo import (
        AutoencoderKLHunyuanVideoDataParallelismPlanner as Planner,
    )

    mesh = dist.init_device_mesh(latents.device.type, (dist.get_world_size(),))
    return diffusers_decode(
        Planner().parallelize_tiling(auto_encoder=vae, dp_mesh=mesh), latents, setup
    )


DECODES: dict[str, Callable[[Any, torch.Tensor, Setup], Decode]] = {
    "longtake": longtake_decode,
    "diffusers": diffusers_decode,
    "cache-dit": cache_dit_decode,
}


def prepare(contestant: Contestant, setup: Setup, device_type: str) -> Prepared:
    """Create the autoencoder; measure error, traffic and memory of decoding.

    Returns:
        A decoding, and its figures: ``error``, the largest difference from diffusers on one rank;
        ``bytes_sent``; ``collectives``; ``peak_bytes``; ``first_s``, seconds until the first frame.
    """
    device = rank_device(device_type)
    frames: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    arrived: list[float] = []
    latents = setup.latents(device)
    decode = DECODES[contestant.package](setup.autoencoder(device), latents, setup)
    with TrafficMeter() as meter:  # the first call includes lazy loading and persistent buffers
        decode(lambda frame: frames.append(frame.clone()))
    if dist.get_rank() == 0:
        diffusers_decode(setup.autoencoder(device), latents, setup)(expected.append)
    error = 0.0
    for ours, theirs in zip(frames, expected, strict=True):
        error = max(error, (ours - theirs).abs().max().item())
    frames.clear()
    expected.clear()
    dist.barrier()
    start = time.perf_counter()
    with peak_memory(device_type) as peak_bytes:
        decode(lambda frame: arrived.append(time.perf_counter()))
    return lambda: decode(lambda frame: None), {
        "error": error,
        "bytes_sent": meter.bytes_sent,
        "collectives": meter.collectives,
        "peak_bytes": peak_bytes(),
        "first_s": arrived[0] - start if arrived else 0.0,
    }
