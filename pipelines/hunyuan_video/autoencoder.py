"""HunyuanVideo's autoencoder in tiles: the geometry of diffusers' AutoencoderKLHunyuanVideo.

Time is causal: the first latent frame is one frame of the video, each later one several.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLHunyuanVideo

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.tiles import Spans, TileCoder, overlapping, single


class _Coder(TileCoder):
    """What both directions share.

    Args:
        vae: with its weights.
        request: says how it is cut.
    """

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        self._vae = vae
        self._request = request
        self._space: int = vae.spatial_compression_ratio
        self._time: int = vae.temporal_compression_ratio
        self.dtype = vae.dtype

    @abstractmethod
    def _cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """So many frames and pixels in cells."""

    @abstractmethod
    def _values_in_time(self, num_cells: int) -> int: ...

    @abstractmethod
    def _values_in_space(self, num_cells: int) -> int: ...

    def spans(self, shape: Sequence[int]) -> Spans:
        """As diffusers cuts it: in time where it is longer than a tile; in space in both
        directions where it is larger than a tile in one, and if that is asked for."""
        request, in_time, in_space = self._request, self._values_in_time, self._values_in_space
        frames, height, width = shape
        whole = single(frames, in_time), single(height, in_space), single(width, in_space)
        if request.decode_tile_size is None or request.decode_tile_stride is None:
            return whole
        size = self._cells(*request.decode_tile_size)
        stride = self._cells(*request.decode_tile_stride)
        times, rows, columns = whole
        if frames > size[0]:
            times = overlapping(frames, size[0], stride[0], in_time, first=1)
        if request.decode == "tiled" and (height > size[1] or width > size[2]):
            rows = overlapping(height, size[1], stride[1], in_space)
            columns = overlapping(width, size[2], stride[2], in_space)
        return times, rows, columns


class HunyuanVideoDecoder(_Coder):
    """Latents, as the denoising loop leaves them, to pixels in [-1, 1] and a little beyond."""

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        super().__init__(vae, request)
        self.channels = vae.config.out_channels

    def _cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return frames // self._time, height // self._space, width // self._space

    def _values_in_time(self, num_cells: int) -> int:
        return (num_cells - 1) * self._time + 1

    def _values_in_space(self, num_cells: int) -> int:
        return num_cells * self._space

    def code(self, cells: torch.Tensor) -> torch.Tensor:
        """Decode tiles of latents, ``[b, C, f, h, w]`` of any dtype."""
        scaled = cells.to(self.dtype) / self._vae.config.scaling_factor
        pixels: torch.Tensor = self._vae.decoder(self._vae.post_quant_conv(scaled))
        return pixels


class HunyuanVideoEncoder(_Coder):
    """Pixels in [-1, 1] to the moments of their latents: mean, then logarithm of the variance."""

    def __init__(self, vae: AutoencoderKLHunyuanVideo, request: ResolvedDecode) -> None:
        super().__init__(vae, request)
        self.channels = 2 * vae.config.latent_channels

    def _cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return frames, height, width

    def _values_in_time(self, num_cells: int) -> int:
        return (num_cells - 1) // self._time + 1

    def _values_in_space(self, num_cells: int) -> int:
        return num_cells // self._space

    def code(self, cells: torch.Tensor) -> torch.Tensor:
        """Encode tiles of pixels, ``[b, 3, f, h, w]`` of any dtype."""
        moments: torch.Tensor = self._vae.quant_conv(self._vae.encoder(cells.to(self.dtype)))
        return moments
