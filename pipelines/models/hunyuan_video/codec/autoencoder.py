"""Tiled encoding and decoding with HunyuanVideo's autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn

from longtake.configs.request import ResolvedDecode
from longtake.parallel import World
from longtake.pipelines.codec.causal_tiling import CausalTileCoder
from longtake.pipelines.codec.decode import encode_videos
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.family import VideoCodec
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.weights import load_weights


class HunyuanVideoCodec(VideoCodec):
    """HunyuanVideo's autoencoder on one rank."""

    def __init__(self, checkpoint: Checkpoint, world: World, dtype: torch.dtype) -> None:
        """Load the autoencoder. Collective: all ranks call it.

        Args:
            checkpoint: The model's files.
            world: The ranks.
            dtype: Dtype of the weights.

        Raises:
            ModelError: It cannot be loaded, or its weights belong to another model.
        """
        self._vae = build_module(AutoencoderKLHunyuanVideo, checkpoint.config("vae"), "vae")
        load_weights(self._vae, checkpoint.source("vae"), world, dtype)

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The autoencoder."""
        return [self._vae]

    def decoder(self, request: ResolvedDecode) -> TileCoder:
        """Return the decoder, tiled as requested."""
        return HunyuanVideoDecoder(self._vae, request)

    def encoder(self, request: ResolvedDecode) -> TileCoder:
        """Return the encoder, tiled as requested."""
        return HunyuanVideoEncoder(self._vae, request)

    def encode_picture(
        self, video: torch.Tensor, request: ResolvedDecode, world: World
    ) -> torch.Tensor:
        """Return the scaled mean of the encoder's distribution. Collective.

        The picture is encoded untiled, whatever the decoding mode: at 720p this takes no more
        memory than one tile of the decoder.

        Args:
            video: ``[1, 3, 1, height, width]`` in [-1, 1], identical on all ranks.
            request: The request.
            world: The ranks.

        Returns:
            ``[1, C, 1, H, W]``, float32, on every rank.
        """
        whole = {"decode": "whole", "decode_tile_size": None, "decode_tile_stride": None}
        encoder = self.encoder(request.model_copy(update=whole))
        mean = encode_videos(encoder, video, world).chunk(2, dim=1)[0]
        return mean.float() * float(self._vae.config.scaling_factor)


class _Coder(CausalTileCoder):
    """Base class of the encoder and the decoder.

    Args:
        vae: Autoencoder with loaded weights.
        request: Tiling mode, tile size and tile stride.
    """

    _decodes: bool

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        self._vae = vae
        time, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
        super().__init__(request, time, space, decodes=self._decodes)
        self.dtype = vae.dtype


class HunyuanVideoDecoder(_Coder):
    """Decodes scaled latents to pixels, nominally in [-1, 1] and not clamped."""

    _decodes = True

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        super().__init__(vae, request)
        self.channels = vae.config.out_channels

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        """Decode latent tiles ``[b, C, f, h, w]`` of any dtype."""
        scaled = tiles.to(self.dtype) / self._vae.config.scaling_factor
        pixels: torch.Tensor = self._vae.decoder(self._vae.post_quant_conv(scaled))
        return pixels


class HunyuanVideoEncoder(_Coder):
    """Encodes pixels in [-1, 1] to latent moments: mean, then log-variance, along channels."""

    _decodes = False

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        super().__init__(vae, request)
        self.channels = 2 * vae.config.latent_channels

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encode pixel tiles ``[b, 3, f, h, w]`` of any dtype."""
        moments: torch.Tensor = self._vae.quant_conv(self._vae.encoder(tiles.to(self.dtype)))
        return moments
