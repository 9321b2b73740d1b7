"""HunyuanVideo's autoencoder in tiles, in both directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLHunyuanVideo

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.hunyuan_video.tiling import Tiling
from longtake.pipelines.tiles import Spans, TileCoder


class _Coder(TileCoder):
    """What both directions share.

    Args:
        vae: with its weights.
        request: says how it is cut.
    """

    _decodes: bool

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        self._vae = vae
        time, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
        self._tiling = Tiling(request, time, space, self._decodes)
        self.dtype = vae.dtype

    def spans(self, shape: Sequence[int]) -> Spans:
        """As diffusers cuts it."""
        return self._tiling.spans(shape)


class HunyuanVideoDecoder(_Coder):
    """Latents, as the denoising loop leaves them, to pixels in [-1, 1] and a little beyond."""

    _decodes = True

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        super().__init__(vae, request)
        self.channels = vae.config.out_channels

    def code(self, cells: torch.Tensor) -> torch.Tensor:
        """Decode tiles of latents, ``[b, C, f, h, w]`` of any dtype."""
        scaled = cells.to(self.dtype) / self._vae.config.scaling_factor
        pixels: torch.Tensor = self._vae.decoder(self._vae.post_quant_conv(scaled))
        return pixels


class HunyuanVideoEncoder(_Coder):
    """Pixels in [-1, 1] to the moments of their latents: mean, then logarithm of the variance."""

    _decodes = False

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        super().__init__(vae, request)
        self.channels = 2 * vae.config.latent_channels

    def code(self, cells: torch.Tensor) -> torch.Tensor:
        """Encode tiles of pixels, ``[b, 3, f, h, w]`` of any dtype."""
        moments: torch.Tensor = self._vae.quant_conv(self._vae.encoder(cells.to(self.dtype)))
        return moments
