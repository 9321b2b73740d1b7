"""Tiled encoding and decoding with HunyuanVideo's autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLHunyuanVideo

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.tiles import Spans, TileCoder
from longtake.pipelines.models.hunyuan_video.codec.tiling import Tiling


class _Coder(TileCoder):
    """Base class of the encoder and the decoder.

    Args:
        vae: Autoencoder with loaded weights.
        request: Tiling mode, tile size and tile stride.
    """

    _decodes: bool

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        self._vae = vae
        time, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
        self._tiling = Tiling(request, time, space, self._decodes)
        self.dtype = vae.dtype

    def spans(self, shape: Sequence[int]) -> Spans:
        """Tile spans identical to diffusers'."""
        return self._tiling.spans(shape)


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
