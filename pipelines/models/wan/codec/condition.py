"""Conditions of a video that are made of pictures, as latents.

The whole clip is encoded: the pictures where they stand, and gray in between. A latent frame of the
released autoencoder depends on the 28 before it (measured with random weights: with a picture in
the first frame, latents of gray are the same bits from the 30th latent frame on). That is more than
the 21 of 81 frames, so no latents can be repeated, and no part of the clip be encoded on its own.

Legend: C channels, F H W latent frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch

from longtake.configs.request import ResolvedDecode
from longtake.parallel import World
from longtake.pipelines.codec.decode import encode_videos
from longtake.pipelines.codec.tiles import TileCoder

FIRST, LAST = "image", "last_image"
"""Names of the pictures: the request fields that they come from."""

_FRAMES_PER_LATENT = 4

RequestT = TypeVar("RequestT", bound=ResolvedDecode)


def untiled(request: RequestT) -> RequestT:
    """The request with ``decode=whole``: how pictures are encoded, whatever the decoding mode.

    Latents do not depend on the decoding mode, and diffusers encodes untiled by default.
    """
    return request.model_copy(
        update={"decode": "whole", "decode_tile_size": None, "decode_tile_stride": None}
    )


def encode_clip(
    encoder: TileCoder, pictures: Mapping[str, torch.Tensor], num_frames: int, world: World
) -> torch.Tensor:
    """Encode a clip that starts with a picture and may end with another. Collective.

    Args:
        encoder: The encoder of an :func:`untiled` request.
        pictures: ``image`` and optionally ``last_image``: ``[1, 3, 1, height, width]`` in [-1, 1],
            identical on all ranks.
        num_frames: Number of frames of the video, at least 2 with a last picture.
        world: All ranks.

    Returns:
        ``[1, 4 + C, F, H, W]``, float32, on every rank: the mask of the frames that are given, then
        the latents of the clip.

    Raises:
        PeerLostError: Another rank died or was silent for too long.
    """
    clip = _clip(pictures, num_frames).to(encoder.dtype)
    latents = encode_videos(encoder, clip, world)
    return torch.cat([given_frames(latents, LAST in pictures), latents], dim=1)


def given_frames(latents: torch.Tensor, has_last: bool) -> torch.Tensor:
    """The mask of given frames, ``[1, 4, F, H, W]``: 1 where a frame is given, else 0.

    Its channels are the frames of a latent frame; the first frame stands in all four.

    Args:
        latents: Latents of the clip, ``[1, C, F, H, W]``.
        has_last: Whether the last frame is given, too.
    """
    _, _, *size = latents.shape
    mask = latents.new_zeros(1, _FRAMES_PER_LATENT, *size)
    mask[:, :, 0] = 1
    if has_last:
        mask[:, -1, -1] = 1
    return mask


def _clip(pictures: Mapping[str, torch.Tensor], num_frames: int) -> torch.Tensor:
    """The pictures with gray in between, ``[1, 3, num_frames, height, width]``."""
    first = pictures[FIRST]
    clip = first.new_zeros(*first.shape[:2], num_frames, *first.shape[3:])
    clip[:, :, :1] = first
    if LAST in pictures:
        clip[:, :, -1:] = pictures[LAST]
    return clip
