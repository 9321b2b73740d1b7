"""Blends the overlapping tiles of a video.

Legend: C channels, f h w frames, rows and columns of a tile, F H W of the whole video.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longtake.pipelines.codec.tiles import Span, Spans, Tile


class TileBlender:
    """Blends the tiles of one video and outputs frames as soon as they are final.

    Bit-identical to diffusers' ``blend_v``, ``blend_h`` and ``blend_t``: the same sums in the same
    order. Holds the frames of one tile in time, whatever the length of the video.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._frames: torch.Tensor | None = None  # [C, f, H, W]: the current tiles in time
        self._previous: torch.Tensor | None = None  # last frames of the previous tiles in time
        self._above: dict[int, torch.Tensor] = {}  # last rows of the tiles above, by column
        self._left: torch.Tensor | None = None  # last columns of the tile to the left

    def add(self, tile: Tile, values: torch.Tensor) -> torch.Tensor | None:
        """Add the next tile, in the order of :attr:`TilePlan.tiles`.

        Args:
            tile: The tile.
            values: Its trimmed output, ``[C, f, h, w]``; modified in place.

        Returns:
            Final frames, ``[C, f, H, W]``, if the tile is the last one of its frames; else None.
        """
        self._blend_in_space(tile, values)
        self._paste(tile, values)
        all_in_time, all_in_height, all_in_width = self._spans
        t, i, j = tile.index
        if (i + 1, j + 1) != (len(all_in_height), len(all_in_width)):
            return None

        frames, self._frames = self._frames, None
        assert frames is not None
        in_time = tile.spans[0]
        if t > 0:
            assert self._previous is not None
            blend_(self._previous, frames, in_time.blend, dim=1)
        if t + 1 < len(all_in_time):
            self._previous = _tail(frames, all_in_time[t + 1].blend, dim=1).clone()
        return frames[:, : in_time.keep]

    def _blend_in_space(self, tile: Tile, values: torch.Tensor) -> None:
        """Blend with the tiles above and to the left, and save the edges for the next tiles."""
        (_, i, j), (_, in_height, in_width) = tile.index, tile.spans
        _, all_in_height, all_in_width = self._spans
        if i > 0:
            blend_(self._above[j], values, in_height.blend, dim=2)
        if j > 0:
            assert self._left is not None
            blend_(self._left, values, in_width.blend, dim=3)
        if i + 1 < len(all_in_height):
            self._above[j] = _tail(values, all_in_height[i + 1].blend, dim=2).clone()
        if j + 1 < len(all_in_width):
            self._left = _tail(values, all_in_width[j + 1].blend, dim=3)

    def _paste(self, tile: Tile, values: torch.Tensor) -> None:
        """Copy the tile's final rows and columns into the current frames."""
        (_, i, j), (in_time, in_height, in_width) = tile.index, tile.spans
        _, all_in_height, all_in_width = self._spans
        if self._frames is None:
            rows, columns = _length(all_in_height), _length(all_in_width)
            self._frames = values.new_empty(len(values), in_time.output_size, rows, columns)
        top, left = _length(all_in_height[:i]), _length(all_in_width[:j])
        region = self._frames[:, :, top : top + in_height.keep, left : left + in_width.keep]
        region.copy_(values[:, :, : in_height.keep, : in_width.keep])


def blend_(previous: torch.Tensor, values: torch.Tensor, extent: int, dim: int) -> None:
    """Blend the beginning of a tile with the end of the previous one, in place.

    Args:
        previous: ``[C, f, h, w]``; may differ from ``values`` in size along ``dim``.
        values: ``[C, f, h, w]``; its first ``extent`` values along ``dim`` are modified.
        extent: Maximum number of values to blend; the weight of ``values`` rises linearly from 0.
        dim: The dimension to blend along.
    """
    extent = min(extent, previous.shape[dim], values.shape[dim])
    if extent == 0:
        return
    shape = [extent if each == dim else 1 for each in range(values.ndim)]
    rising = (torch.arange(extent, dtype=torch.float64) / extent).view(shape)
    # Half precision is multiplied in float32 and rounded, as with diffusers' Python scalars.
    exact = torch.promote_types(values.dtype, torch.float32)
    falling, rising = (weights.to(values.device, exact) for weights in (1 - rising, rising))
    own = values.narrow(dim, 0, extent)
    others = (_tail(previous, extent, dim) * falling).to(values.dtype)
    torch.add(others, (own * rising).to(values.dtype), out=own)


def _tail(values: torch.Tensor, count: int, dim: int) -> torch.Tensor:
    """The last ``count`` values along a dimension, or all if there are fewer."""
    count = min(count, values.shape[dim])
    return values.narrow(dim, values.shape[dim] - count, count)


def _length(spans: Sequence[Span]) -> int:
    """Length of the blended output of consecutive tiles."""
    return sum(span.keep for span in spans)
