"""How diffusers' AutoencoderKLHunyuanVideo cuts videos and latents into tiles; without torch.

Time is causal: the first latent frame is one frame of the video, each later one several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.tiles import Spans, overlapping, single


@dataclass(frozen=True)
class Tiling:
    """The tiles of one direction.

    Args:
        request: the sizes of tiles, in frames and pixels.
        time, space: frames to a latent frame, pixels to a latent.
        decodes: whether latents go in and pixels come out, or the other way round.
    """

    request: ResolvedDecode
    time: int
    space: int
    decodes: bool

    def spans(self, shape: Sequence[int]) -> Spans:
        """As diffusers cuts it: in time where it is longer than a tile; in space in both
        directions where it is larger than a tile in one, and if that is asked for."""
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
        """So many frames and pixels in what goes in."""
        if self.decodes:
            return frames // self.time, height // self.space, width // self.space
        return frames, height, width

    def _in_time(self, cells: int) -> int:
        """Values along time that come of so many cells."""
        return (cells - 1) * self.time + 1 if self.decodes else (cells - 1) // self.time + 1

    def _in_space(self, cells: int) -> int:
        return cells * self.space if self.decodes else cells // self.space
