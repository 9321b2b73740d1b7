"""Another family's autoencoder needs only a tile coder to be bit-identical to diffusers.

Later tiles of LTX drop their last frame, not their first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from longtake.pipelines.codec.tiles import Spans, TileCoder, overlapping_spans
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


@torch.no_grad()
def error() -> float | None:
    """On a rank: the largest difference from diffusers; None on ranks other than 0."""
    latents = random_videos(0, (1, 4, 4, 3, 4), "decode")
    values = run_tiled(LtxDecoder(), latents, world())
    if values is None:
        return None
    expected: torch.Tensor = ltx().decode(latents).sample
    assert values.shape == expected.shape
    assert expected.std() > 0.01
    return (values - expected).abs().max().item()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_decoding_is_bit_identical_to_diffusers(ranks: RankGroups, world_size: int) -> None:
    assert ranks.run(world_size, error) == [0] + [None] * (world_size - 1)
