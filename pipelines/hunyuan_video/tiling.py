"""Tiling of videos and latents as in diffusers' AutoencoderKLHunyuanVideo, without torch.

The autoencoder is causal in time: the first latent frame is one video frame, each later one is
several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.tiles import Spans, overlapping, single


@dataclass(frozen=True)
class Tiling:
    """Tiles of an encoder or a decoder.

    Args:
        request: Tiling mode, and tile size and stride in frames and pixels.
        time: Temporal compression ratio.
        space: Spatial compression ratio.
        decodes: Whether latents are decoded to pixels, rather than pixels encoded to latents.
    """

    request: ResolvedDecode
    time: int
    space: int
    decodes: bool

    def spans(self, shape: Sequence[int]) -> Spans:
        """Return the tile spans of a ``(frames, height, width)`` input, identical to diffusers'.

        Time is tiled if it exceeds a tile. Height and width are both tiled if either exceeds a tile
        and the request asks for spatial tiling.
        """
        request = self.request
        frames, height, width = shape
        times, rows, columns = (
            single(frames, self._in_time),
            single(height, self._in_space),
            single(width, self._in_space),
        )
        if request.decode_tile_size is None or request.decode_tile_stride is None:
            return times, rows, columns
        size = self._cells(*request.decode_tile_size)
        stride = self._cells(*request.decode_tile_stride)
        if frames > size[0]:
            times = overlapping(frames, size[0], stride[0], self._in_time, first=1)
        if request.decode == "tiled" and (height > size[1] or width > size[2]):
            rows = overlapping(height, size[1], stride[1], self._in_space)
            columns = overlapping(width, size[2], stride[2], self._in_space)
        return times, rows, columns

    def _cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Convert frames and pixels to the units of the input."""
        if self.decodes:
            return frames // self.time, height // self.space, width // self.space
        return frames, height, width

    def _in_time(self, cells: int) -> int:
        """Output frames of ``cells`` input frames."""
        return (cells - 1) * self.time + 1 if self.decodes else (cells - 1) // self.time + 1

    def _in_space(self, cells: int) -> int:
        return cells * self.space if self.decodes else cells // self.space
