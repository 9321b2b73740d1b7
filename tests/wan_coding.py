"""Tiny Wan autoencoders with random weights, and functions that ranks run with them; diffusers is
the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline

from longtake.configs.field_types import DecodeMode
from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.decode import TileRun, decode_videos, encode_videos
from longtake.pipelines.models.wan.codec.autoencoder import WanDecoder, WanEncoder
from longtake.pipelines.models.wan.codec.condition import encode_clip, untiled
from tests.decoding import random_videos, run_tiled
from tests.rendering import world

Kind = Literal["wan2.1", "wan2.2"]
KINDS: tuple[Kind, ...] = ("wan2.1", "wan2.2")

TILE, STEP = (3, 4), (2, 3)
"""Size and stride of a tile: rows and columns of latents."""

_COMMON: dict[str, Any] = dict(
    z_dim=4,
    num_res_blocks=1,
    latents_mean=[0.1, -0.3, 0.5, 0.0],
    latents_std=[1.3, 0.7, 2.1, 1.0],
)

TINY: dict[Kind, dict[str, Any]] = {
    "wan2.1": dict(base_dim=8, dim_mult=[1, 2, 2, 2], **_COMMON),
    "wan2.2": dict(
        base_dim=4,
        decoder_base_dim=6,
        dim_mult=[1, 2, 4, 4],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        **_COMMON,
    ),
}

RELEASED: dict[Kind, dict[str, Any]] = {
    "wan2.1": {},  # diffusers' defaults; also of 2.2's A14B
    "wan2.2": dict(
        base_dim=160,
        decoder_base_dim=256,
        z_dim=48,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ),
}
"""Settings of the released autoencoders, but for 2.2's statistics of latents."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{f"released {kind}": settings for kind, settings in RELEASED.items()},
    **{f"tiny {kind}": settings for kind, settings in TINY.items()},
    "two halvings": dict(
        base_dim=6, dim_mult=[1, 2, 3], temperal_downsample=[True, True], scale_factor_spatial=4
    ),
    "odd widths": dict(base_dim=9, dim_mult=[1, 1, 3, 5], num_res_blocks=3),
}
"""Settings of AutoencoderKLWan."""


def autoencoder(kind: Kind, **changes: Any) -> Any:
    """An autoencoder with 4 latent channels: one latent is 4 frames of 8 x 8 pixels (2.1), or of
    16 x 16 (2.2: residual, patchified). Some of its pixels exceed [-1, 1]."""
    torch.manual_seed(1)
    model: Any = AutoencoderKLWan(**{**TINY[kind], **changes}).eval().requires_grad_(False)
    model.decoder.conv_out.weight *= 6
    return model


@cache
def vae(kind: Kind) -> Any:
    """The autoencoder, identical in every process."""
    return autoencoder(kind)


def ratio(kind: Kind) -> int:
    """Pixels per latent, in height and width."""
    found: int = vae(kind).spatial_compression_ratio
    return found


def tiling(kind: Kind, size: Sequence[int], mode: DecodeMode = "tiled") -> ResolvedDecode:
    """A request for a tiling.

    Args:
        size: Rows and columns of the latents.
    """
    whole, (height, width) = mode == "whole", _pixels(kind, size)
    return ResolvedDecode(
        decode=mode,
        decode_tile_size=None if whole else (4, *_pixels(kind, TILE)),
        decode_tile_stride=None if whole else (4, *_pixels(kind, STEP)),
        fps=8,
        height=height,
        width=width,
        num_frames=1,
    )


def _pixels(kind: Kind, size: Sequence[int]) -> tuple[int, int]:
    rows, columns = size
    return rows * ratio(kind), columns * ratio(kind)


def _set_tiles(model: Any, mode: DecodeMode) -> None:
    in_space = model.spatial_compression_ratio
    model.enable_tiling(*(each * in_space for each in (*TILE, *STEP)))
    model.use_tiling = mode == "tiled"


def _statistics(model: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and one over the standard deviation, as diffusers' pipelines compute them."""
    shape = (1, model.config.z_dim, 1, 1, 1)
    mean = torch.tensor(model.config.latents_mean).view(shape).to(dtype)
    return mean, 1.0 / torch.tensor(model.config.latents_std).view(shape).to(dtype)


@torch.no_grad()
def diffusers_decoded(model: Any, latents: torch.Tensor, mode: DecodeMode) -> torch.Tensor:
    """Decode as WanPipeline does, one video after the other."""
    _set_tiles(model, mode)
    mean, scale = _statistics(model, model.dtype)
    return torch.cat(
        [model.decode(each[None].to(model.dtype) / scale + mean).sample for each in latents]
    )


@torch.no_grad()
def diffusers_encoded(model: Any, pixels: torch.Tensor, mode: DecodeMode) -> torch.Tensor:
    """Encode as WanImageToVideoPipeline does, one video after the other."""
    _set_tiles(model, mode)
    mean, scale = _statistics(model, torch.float32)
    modes = [model.encode(each[None].to(model.dtype)).latent_dist.mode() for each in pixels]
    return (torch.cat(modes).to(torch.float32) - mean) * scale


Case = tuple[Kind, tuple[int, ...], DecodeMode]
"""The autoencoder, B, F, H and W in latents, and the mode."""


def decoding_errors(cases: Sequence[Case]) -> list[float | None]:
    """On a rank: the largest difference of decoded values from diffusers; None but on rank 0."""
    found: list[float | None] = []
    for kind, (count, *size), mode in cases:
        latents = random_videos(sum(size), (count, 4, *size), "decode")
        values = run_tiled(WanDecoder(vae(kind), tiling(kind, size[1:], mode)), latents, world())
        if values is None:
            found.append(None)
            continue
        expected = diffusers_decoded(vae(kind), latents, mode)
        assert values.shape == expected.shape
        found.append((values.clamp(-1, 1) - expected).abs().max().item())
    return found


def frame_error(case: Case) -> float | None:
    """On a rank: the largest difference of frames in [0, 1] from diffusers; None but on rank 0."""
    kind, (count, *size), mode = case
    latents = random_videos(sum(size), (count, 4, *size), "decode")
    frames: list[torch.Tensor] = []
    run = TileRun(WanDecoder(vae(kind), tiling(kind, size[1:], mode)), latents, world())
    decode_videos(run, lambda video, index, frame: frames.append(frame.clone()))
    if world().rank != 0:
        return None
    expected = diffusers_decoded(vae(kind), latents, mode) / 2 + 0.5
    assert {expected.min().item(), expected.max().item()} == {0, 1}
    values = torch.stack(frames).unflatten(0, (count, -1)).permute(0, 4, 1, 2, 3)
    assert values.shape == expected.shape
    error: float = (values - expected).abs().max().item()
    return error


def clip_pictures(kind: Kind, size: Sequence[int], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Pictures of noise by their names, ``[1, 3, 1, height, width]``.

    Args:
        size: Rows and columns of the latents.
    """
    shape = (1, 3, 1, *_pixels(kind, size))
    return {name: random_videos(seed, shape, "encode") for seed, name in enumerate(names)}


@torch.no_grad()
def diffusers_condition(
    kind: Kind, pictures: Mapping[str, torch.Tensor], num_frames: int
) -> torch.Tensor:
    """What WanImageToVideoPipeline makes of pictures: mask and latents of the clip or, for 2.2's
    5B, the latents of the first frame."""
    model = vae(kind)
    _set_tiles(model, "whole")
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=model,
        scheduler=None,
        expand_timesteps=kind == "wan2.2",
    )
    frames = {name: picture[:, :, 0] for name, picture in pictures.items()}
    height, width = frames["image"].shape[2:]
    _, condition, *_ = pipeline.prepare_latents(
        frames["image"],
        batch_size=1,
        num_channels_latents=4,
        height=height,
        width=width,
        num_frames=num_frames,
        dtype=torch.float32,
        last_image=frames.get("last_image"),
    )
    found: torch.Tensor = condition
    return found


def condition_error(names: Sequence[str], num_frames: int) -> float:
    """On a rank: the largest difference of a clip's condition from diffusers."""
    kind: Kind = "wan2.1"
    size = (4, 5)  # larger than a tile
    pictures = clip_pictures(kind, size, names)
    encoder = WanEncoder(vae(kind), untiled(tiling(kind, size)))
    condition = encode_clip(encoder, pictures, num_frames, world())
    expected = diffusers_condition(kind, pictures, num_frames)
    assert condition.shape == expected.shape
    error: float = (condition - expected).abs().max().item()
    return error


def encoding_errors(cases: Sequence[Case]) -> list[float]:
    """On a rank: the largest difference of the latents from diffusers."""
    found = []
    for kind, (count, frames, rows, columns), mode in cases:
        shape = (count, 3, 4 * frames - 3, rows * ratio(kind), columns * ratio(kind))
        pixels = random_videos(sum(shape), shape, "encode")
        latents = encode_videos(
            WanEncoder(vae(kind), tiling(kind, (rows, columns), mode)), pixels, world()
        )
        expected = diffusers_encoded(vae(kind), pixels, mode)
        assert latents.shape == expected.shape
        assert latents.dtype == torch.float32
        found.append((latents - expected).abs().max().item())
    return found
