"""Tiling for autoencoders that are causal in time, as diffusers does it; without torch.

The first latent frame is one video frame, each later one is several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.tiles import Spans, TileCoder, overlapping_spans, single_span


@dataclass(frozen=True)
class CausalTiling:
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
            single_span(frames, self._frames_out),
            single_span(height, self._size_out),
            single_span(width, self._size_out),
        )
        if request.decode_tile_size is None or request.decode_tile_stride is None:
            return times, rows, columns
        size = self._input_units(*request.decode_tile_size)
        stride = self._input_units(*request.decode_tile_stride)
        if frames > size[0]:
            times = overlapping_spans(frames, size[0], stride[0], self._frames_out, first=1)
        if request.decode == "tiled" and (height > size[1] or width > size[2]):
            rows = overlapping_spans(height, size[1], stride[1], self._size_out)
            columns = overlapping_spans(width, size[2], stride[2], self._size_out)
        return times, rows, columns

    def _input_units(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Convert frames and pixels to the units of the input."""
        if self.decodes:
            return frames // self.time, height // self.space, width // self.space
        return frames, height, width

    def _frames_out(self, frames: int) -> int:
        """Output frames of ``frames`` input frames."""
        return (frames - 1) * self.time + 1 if self.decodes else (frames - 1) // self.time + 1

    def _size_out(self, size: int) -> int:
        """Output height or width of ``size`` input rows or columns."""
        return size * self.space if self.decodes else size // self.space


class CausalTileCoder(TileCoder):
    """An encoder or a decoder with the tiles of :class:`CausalTiling`, whose arguments it takes."""

    def __init__(self, request: ResolvedDecode, time: int, space: int, *, decodes: bool) -> None:
        self._tiling = CausalTiling(request, time, space, decodes)

    def spans(self, shape: Sequence[int]) -> Spans:
        """Tile spans identical to diffusers'."""
        return self._tiling.spans(shape)
