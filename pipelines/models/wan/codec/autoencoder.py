"""Encoding and decoding with Wan's autoencoder, tile by tile.

The only module of the family that calls diffusers' encoder and decoder with their feature cache;
tests/unit/pipelines/test_library_internals.py fails when it moves. The cache is a list that belongs
to one call, not to the model, so that tiles do not share state.

Legend: b tiles, C channels, f h w frames, rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    patchify,
    unpatchify,
)
from torch import nn

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.tiles import Spans, TileCoder
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.codec.tiling import Tiling


class _Coder(TileCoder):
    """Base class of the encoder and the decoder.

    Args:
        vae: Autoencoder with loaded weights.
        request: Size of the video, tiling mode, tile size and tile stride.
    """

    _decodes: bool

    def __init__(self, vae: AutoencoderKLWan, request: ResolvedDecode) -> None:
        self._vae = vae
        self._config = VaeConfig.model_validate(dict(vae.config))
        self._tiling = Tiling(self._config, request, self._decodes)
        self.dtype = vae.dtype

    def spans(self, shape: Sequence[int]) -> Spans:
        """Tile spans identical to diffusers'."""
        return self._tiling.spans(shape)

    def peak_bytes(self, shape: Sequence[int], device: torch.device) -> int:
        """Measure a few frames: from the third latent frame on, each adds the same.

        Measuring takes a tenth of a second a latent frame.
        """
        tiles, channels, frames, *size = shape
        chunk = 1 if self._decodes else self._config.scale_factor_temporal
        chunks = (frames - 1) // chunk + 1
        third, fourth = (
            super(_Coder, self).peak_bytes((tiles, channels, 1 + later * chunk, *size), device)
            for later in (min(chunks, 3) - 1, min(chunks, 4) - 1)
        )
        return fourth + (fourth - third) * max(0, chunks - 4)

    def _pointwise(self, convolution: nn.Module, latents: torch.Tensor) -> torch.Tensor:
        """Apply a 1 x 1 x 1 convolution: frame by frame to a tile, at once to a whole video.

        So does diffusers; torch's kernels round differently for other numbers of frames (2e-6).
        """
        parts = latents.split(1, dim=2) if self._tiling.tiled else [latents]
        return torch.cat([convolution(part) for part in parts], dim=2)

    def _statistics(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Mean of the latents, and one over their standard deviation, ``[C, 1, 1, 1]`` each."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).to(device, dtype)
            for values in (self._config.latents_mean, self._config.latents_std)
        )
        return mean, 1.0 / std


class WanDecoder(_Coder):
    """Decodes latents to pixels, nominally in [-1, 1] and not clamped.

    The autoencoder of 2.2 decodes to ``patch`` x ``patch`` pixels a position; :meth:`finish` takes
    them apart after blending.
    """

    _decodes = True

    def __init__(self, vae: AutoencoderKLWan, request: ResolvedDecode) -> None:
        super().__init__(vae, request)
        self.channels = self._config.out_channels

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        """Decode latent tiles ``[b, C, f, h, w]`` of any dtype, frame by frame."""
        mean, scale = self._statistics(tiles.device, self.dtype)
        latents = self._pointwise(self._vae.post_quant_conv, tiles.to(self.dtype) / scale + mean)
        cache, frames = feature_cache(self._vae.decoder), list[torch.Tensor]()
        for frame in latents.split(1, dim=2):
            frames.append(
                self._vae.decoder(frame, feat_cache=cache, feat_idx=[0], first_chunk=not frames)
            )
        return torch.cat(frames, dim=2)

    def finish(self, values: torch.Tensor) -> torch.Tensor:
        """Blended values to pixels, ``[3, f, H, W]``."""
        pixels: torch.Tensor = unpatchify(values[None], self._config.patch)[0]
        return pixels


class WanEncoder(_Coder):
    """Encodes pixels in [-1, 1] to latents: the mean of the distribution, as denoised latents are
    scaled."""

    _decodes = False

    def __init__(self, vae: AutoencoderKLWan, request: ResolvedDecode) -> None:
        super().__init__(vae, request)
        self.channels = self._config.z_dim

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encode pixel tiles ``[b, 3, f, h, w]`` of any dtype: the first frame, then four at a
        time. The output, ``[b, C, f, h, w]``, is not yet scaled."""
        cache, moments = feature_cache(self._vae.encoder), list[torch.Tensor]()
        pixels = patchify(tiles.to(self.dtype), self._config.patch)
        for frames in _chunks(pixels, self._config.scale_factor_temporal):
            moments.append(self._vae.encoder(frames, feat_cache=cache, feat_idx=[0]))
        mean, _ = self._pointwise(self._vae.quant_conv, torch.cat(moments, dim=2)).chunk(2, dim=1)
        return mean

    def finish(self, values: torch.Tensor) -> torch.Tensor:
        """Blended means to latents, ``[C, f, H, W]``, float32."""
        mean, scale = self._statistics(values.device, torch.float32)
        return (values.float() - mean) * scale


def feature_cache(coder: nn.Module) -> list[torch.Tensor | str | None]:
    """An empty cache: one entry for each causal convolution, filled by the forward pass."""
    return [None for module in coder.modules() if isinstance(module, WanCausalConv3d)]


def _chunks(pixels: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """The first frame, then ``size`` frames at a time; frames that fill no chunk are left out."""
    yield pixels[:, :, :1]
    for start in range(1, pixels.shape[2] - size + 1, size):
        yield pixels[:, :, start : start + size]
