"""Tiling of videos and latents as in diffusers' AutoencoderKLWan, without torch.

The autoencoder goes through a video frame by frame and remembers features of all earlier frames, so
a tile covers all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.tiles import Span, Spans, overlapping_spans, single_span
from longtake.pipelines.models.wan.codec.config import VaeConfig

TILE_SIZE, TILE_STRIDE = (4, 256, 256), (4, 192, 192)
"""Default tiles of diffusers' AutoencoderKLWan, in frames, which have no effect, and pixels."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of an encoder or a decoder.

    Both work at the size of the patchified video: its rows and columns are ``patch`` pixels each.
    Tiles of ``decode=tiled`` are those that diffusers makes once ``enable_tiling`` was called.
    ``whole`` and ``framewise`` have none: the autoencoder goes frame by frame in any case.

    Args:
        config: Configuration of the autoencoder.
        request: Size of the video, tiling mode, and tile size and stride in frames and pixels.
        decodes: Whether latents are decoded to pixels, rather than pixels encoded to latents.
    """

    config: VaeConfig
    request: ResolvedDecode
    decodes: bool

    def spans(self, shape: Sequence[int]) -> Spans:
        """Tile spans of a ``(frames, height, width)`` input, identical to diffusers'.

        The output of the decoder is ``patch`` times smaller than the video, which it becomes after
        blending.
        """
        frames, height, width = shape
        size, stride = self.request.decode_tile_size, self.request.decode_tile_stride
        if self.tiled and size is not None and stride is not None:
            rows = self._overlapping(height, size[1], stride[1])
            columns = self._overlapping(width, size[2], stride[2])
        else:
            rows, columns = (single_span(each, self._size_out) for each in (height, width))
        return single_span(frames, self._frames_out), rows, columns

    @property
    def tiled(self) -> bool:
        """Whether height and width are tiled: both are if either exceeds a tile."""
        request, size = self.request, self.request.decode_tile_size
        if request.decode != "tiled" or size is None:
            return False
        return request.height > size[1] or request.width > size[2]

    def _overlapping(self, length: int, size_px: int, stride_px: int) -> list[Span]:
        """Overlapping spans of rows or columns. diffusers tiles the pixels that it encodes after
        patchifying them, so that a tile has ``patch`` times the pixels that were asked for."""
        config = self.config
        size, stride = (
            each // config.scale_factor_spatial if self.decodes else each * config.patch
            for each in (size_px, stride_px)
        )
        return overlapping_spans(length, size, stride, self._size_out)

    def _frames_out(self, frames: int) -> int:
        """Output frames of ``frames`` input frames."""
        factor = self.config.scale_factor_temporal
        return (frames - 1) * factor + 1 if self.decodes else (frames - 1) // factor + 1

    def _size_out(self, size: int) -> int:
        """Output height or width of ``size`` input rows or columns."""
        factor = self.config.scale_factor_spatial
        return size * factor // self.config.patch if self.decodes else size // factor
