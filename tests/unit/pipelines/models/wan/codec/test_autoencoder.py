"""Wan's autoencoder on one rank, bit-identical to diffusers in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longtake.configs.field_types import DecodeMode
from longtake.pipelines.codec.decode import encode_videos
from longtake.pipelines.codec.memory import peak_bytes
from longtake.pipelines.models.wan.codec.autoencoder import WanDecoder, WanEncoder
from tests.decoding import random_videos, run_tiled
from tests.rendering import ALONE
from tests.wan_coding import (
    KINDS,
    Kind,
    diffusers_decoded,
    diffusers_encoded,
    ratio,
    tiling,
    vae,
)

MODES: tuple[DecodeMode, ...] = ("tiled", "whole")

LATENTS = {
    "one frame in four tiles": (1, 1, 4, 5),
    "5 frames in one tile": (1, 2, 3, 4),
    "9 frames, one column too many": (1, 3, 2, 5),
    "17 frames": (1, 5, 1, 2),
    "two videos": (2, 2, 5, 3),
}
"""B, F, H and W."""


@pytest.mark.parametrize("size", LATENTS.values(), ids=LATENTS.keys())
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_bit_identical_to_diffusers(kind: Kind, mode: DecodeMode, size: Any) -> None:
    latents = random_videos(sum(size), (size[0], 4, *size[1:]), "decode")
    values = run_tiled(WanDecoder(vae(kind), tiling(kind, size[2:], mode)), latents, ALONE)
    assert values is not None
    expected = diffusers_decoded(vae(kind), latents, mode)
    assert values.shape == expected.shape
    assert expected.std() > 0.01
    torch.testing.assert_close(values.clamp(-1, 1), expected, rtol=0, atol=0)


@pytest.mark.parametrize("chunks", [1, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_is_exact_without_running_all_frames(kind: Kind, chunks: int) -> None:
    request, cpu = tiling(kind, (2, 3)), torch.device("cpu")
    pixels = (1, 3, 4 * chunks - 3, 2 * ratio(kind), 3 * ratio(kind))
    for coder, shape in (
        (WanDecoder(vae(kind), request), (1, 4, chunks, 2, 3)),
        (WanEncoder(vae(kind), request), pixels),
    ):
        assert coder.peak_bytes(shape, cpu) == peak_bytes(coder.run, shape, cpu)


@pytest.mark.parametrize("size", LATENTS.values(), ids=LATENTS.keys())
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_encoding_is_bit_identical_to_diffusers(kind: Kind, mode: DecodeMode, size: Any) -> None:
    videos, frames, rows, columns = size
    shape = (videos, 3, 4 * frames - 3, rows * ratio(kind), columns * ratio(kind))
    pixels = random_videos(sum(shape), shape, "encode")
    latents = encode_videos(WanEncoder(vae(kind), tiling(kind, size[2:], mode)), pixels, ALONE)
    expected = diffusers_encoded(vae(kind), pixels, mode)
    assert expected.std() > 0.01
    torch.testing.assert_close(latents, expected, rtol=0, atol=0)
