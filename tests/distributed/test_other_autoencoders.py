"""Other families' autoencoders need only a tile coder to be bit-identical to diffusers.

Their differences: later tiles of LTX drop their last frame, not their first; Wan decodes one frame
at a time with a feature cache, is tiled in space only, and unpatchifies blended values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from longtake.pipelines.codec.tiles import Spans, TileCoder, overlapping_spans, single_span
from tests.decoding import random_videos, run_tiled
from tests.ranks import RankGroups
from tests.rendering import world


@cache
def ltx() -> Any:
    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    vae.enable_tiling(64, 64, 16, 32, 32, 8)
    vae.use_framewise_decoding = True
    return vae.eval()


class LtxDecoder(TileCoder):
    """One latent is 32 x 32 pixels and 8 frames."""

    channels, dtype = 3, torch.float32

    def spans(self, shape: Sequence[int]) -> Spans:
        frames, rows, columns = shape
        in_time = overlapping_spans(frames, 2, 1, lambda cells: 8 * cells - 7, first=1)
        later = [replace(span, output_slice=slice(0, span.output_size)) for span in in_time[1:]]
        return (
            [in_time[0], *later],
            overlapping_spans(rows, 2, 1, lambda cells: 32 * cells),
            overlapping_spans(columns, 2, 1, lambda cells: 32 * cells),
        )

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = ltx().decoder(tiles, None)
        return pixels


@cache
def wan() -> Any:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    vae.enable_tiling(64, 64, 48, 32)
    return vae.eval()


class WanDecoder(TileCoder):
    """One latent is 16 x 16 pixels, output as 8 x 8 with four times the channels, and 4 frames."""

    channels, dtype = 12, torch.float32

    def spans(self, shape: Sequence[int]) -> Spans:
        frames, rows, columns = shape
        return (
            single_span(frames, lambda cells: 4 * cells - 3),
            overlapping_spans(rows, 4, 3, lambda cells: 8 * cells),
            overlapping_spans(columns, 4, 2, lambda cells: 8 * cells),
        )

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        vae, frames = wan(), list[torch.Tensor]()
        vae.clear_cache()
        for frame in tiles.split(1, dim=2):
            frames.append(
                vae.decoder(
                    vae.post_quant_conv(frame),
                    feat_cache=vae._feat_map,
                    feat_idx=[0],
                    first_chunk=not frames,
                )
            )
        vae.clear_cache()
        return torch.cat(frames, dim=2)

    def finish(self, values: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = unpatchify(values[None], patch_size=2)[0]
        return pixels.clamp(-1, 1)


FAMILIES: dict[str, tuple[type[TileCoder], Any, tuple[int, ...]]] = {
    "LTX": (LtxDecoder, ltx, (1, 4, 4, 3, 4)),
    "Wan": (WanDecoder, wan, (2, 4, 3, 5, 7)),
}


@torch.no_grad()
def error(family: str) -> float | None:
    """On a rank: the largest difference from diffusers; None on ranks other than 0."""
    coder, vae, shape = FAMILIES[family]
    latents = random_videos(0, shape, "decode")
    values = run_tiled(coder(), latents, world())
    if values is None:
        return None
    expected = torch.cat([vae().decode(each[None]).sample for each in latents])
    assert values.shape == expected.shape
    assert expected.std() > 0.01
    return (values - expected).abs().max().item()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_is_bit_identical_to_diffusers(
    ranks: RankGroups, family: str, world_size: int
) -> None:
    assert ranks.run(world_size, error, family) == [0] + [None] * (world_size - 1)
