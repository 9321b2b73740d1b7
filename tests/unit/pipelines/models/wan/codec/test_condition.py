"""Conditions made of pictures, bit-identical to those of diffusers' WanImageToVideoPipeline."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from longtake.pipelines.codec.decode import encode_videos
from longtake.pipelines.models.wan.codec.autoencoder import WanEncoder
from longtake.pipelines.models.wan.codec.condition import encode_clip, untiled
from tests.rendering import ALONE
from tests.wan_coding import Kind, clip_pictures, diffusers_condition, tiling, vae

SIZE = (4, 5)
"""Rows and columns of the latents: more than a tile's."""


def encoder(kind: Kind) -> WanEncoder:
    return WanEncoder(vae(kind), untiled(tiling(kind, SIZE)))


@pytest.mark.parametrize(
    ("names", "num_frames"),
    [
        (["image"], 1),
        (["image"], 5),
        (["image"], 17),
        (["image", "last_image"], 5),
        (["image", "last_image"], 9),
    ],
    ids=str,
)
def test_clip(names: Sequence[str], num_frames: int) -> None:
    pictures = clip_pictures("wan2.1", SIZE, names)
    condition = encode_clip(encoder("wan2.1"), pictures, num_frames, ALONE)
    expected = diffusers_condition("wan2.1", pictures, num_frames)
    assert condition.shape == (1, 8, (num_frames + 3) // 4, *SIZE)
    torch.testing.assert_close(condition, expected, rtol=0, atol=0)


def test_first_frame() -> None:
    """2.2's 5B puts the picture's own latents in place of the first frame."""
    pictures = clip_pictures("wan2.2", SIZE, ["image"])
    latents = encode_videos(encoder("wan2.2"), pictures["image"], ALONE)
    expected = diffusers_condition("wan2.2", pictures, num_frames=9)
    torch.testing.assert_close(latents, expected, rtol=0, atol=0)
