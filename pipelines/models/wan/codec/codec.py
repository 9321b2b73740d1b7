"""Wan's autoencoder on one rank: videos and pictures to latents, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from longtake.configs.request import ResolvedDecode
from longtake.parallel import World
from longtake.pipelines.codec.decode import encode_videos
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.family import Streams, VideoCodec
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.loading.weights import load_weights
from longtake.pipelines.models.wan.codec.autoencoder import WanDecoder, WanEncoder
from longtake.pipelines.models.wan.codec.condition import FIRST, encode_clip, untiled
from longtake.pipelines.spec import ModelSpec


class WanCodec(VideoCodec):
    """Wan's autoencoder on one rank.

    Args:
        vae: Autoencoder with loaded weights.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self._vae = vae

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The autoencoder."""
        return [self._vae]

    def decoder(self, request: ResolvedDecode) -> TileCoder:
        """Return the decoder, tiled as requested."""
        return WanDecoder(self._vae, request)

    def encoder(self, request: ResolvedDecode) -> TileCoder:
        """Return the encoder, tiled as requested. Its output is the scaled mean."""
        return WanEncoder(self._vae, request)

    def encode_condition(
        self, videos: Streams, request: ResolvedDecode, world: World
    ) -> torch.Tensor:
        """Return the mask and the latents of the pictures' clip. Collective.

        Args:
            videos: ``image`` and optionally ``last_image``: ``[1, 3, 1, height, width]`` in
                [-1, 1], identical on all ranks.
            request: The request.
            world: The ranks.

        Returns:
            ``[1, 4 + C, F, H, W]``, float32, on every rank.
        """
        return encode_clip(self.encoder(untiled(request)), videos, request.num_frames, world)

    def encode_first_frame(
        self, videos: Streams, request: ResolvedDecode, world: World
    ) -> torch.Tensor:
        """Return the latents of a picture, ``[1, C, 1, H, W]``, float32. Collective."""
        return encode_videos(self.encoder(untiled(request)), videos[FIRST], world)


def load_codec(checkpoint: Checkpoint, spec: ModelSpec, world: World, plan: LoadPlan) -> WanCodec:
    """Load the autoencoder. Collective: all ranks call it.

    Raises:
        ModelError: It cannot be loaded, or its weights belong to another model.
    """
    vae = build_module(AutoencoderKLWan, checkpoint.config("vae"), "vae")
    source = checkpoint.source("vae")
    load_weights(vae, source, world, plan.autoencoder.dtype)
    return WanCodec(vae)
