"""How the tiles of a video become one again.

Legend: C channels, f h w frames, rows and columns of a tile, F H W of the whole.
"""

from __future__ import annotations

import torch

from longtake.pipelines.tiles import Spans, Tile


class TileBlender:
    """Puts the tiles of one video together, and gives frames away as soon as they are final.

    The same sums in the same order as diffusers' ``blend_v``, ``blend_h`` and ``blend_t``, so the
    same bits. It holds the frames of one row of tiles in time, however long the video is.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._frames: torch.Tensor | None = None  # [C, f, H, W] of these tiles in time
        self._before: torch.Tensor | None = None  # the last frames of those before
        self._above: dict[int, torch.Tensor] = {}  # the last rows of the tiles above, by column
        self._left: torch.Tensor | None = None  # the last columns of the tile to the left

    def add(self, tile: Tile, values: torch.Tensor) -> torch.Tensor | None:
        """Add the next tile, ``[C, f, h, w]``, which is changed.

        Returns:
            ``[C, f, H, W]``: frames that are final, if these were the last tile's; else None.
        """
        (t, i, j), (in_time, in_height, in_width) = tile.place, tile.spans
        all_in_time, all_in_height, all_in_width = self._spans
        if i > 0:
            blend_(self._above[j], values, in_height.blend, dim=2)
        if j > 0:
            assert self._left is not None
            blend_(self._left, values, in_width.blend, dim=3)
        if i + 1 < len(all_in_height):
            self._above[j] = _tail(values, all_in_height[i + 1].blend, dim=2).clone()
        if j + 1 < len(all_in_width):
            self._left = _tail(values, all_in_width[j + 1].blend, dim=3)
        rows, columns = (sum(span.keep for span in spans) for spans in self._spans[1:])
        if self._frames is None:
            self._frames = values.new_empty(len(values), in_time.size, rows, columns)
        top, left = (
            sum(span.keep for span in spans[:number])
            for spans, number in ((all_in_height, i), (all_in_width, j))
        )
        own = values[:, :, : in_height.keep, : in_width.keep]
        self._frames[:, :, top : top + in_height.keep, left : left + in_width.keep] = own
        if (i + 1, j + 1) != (len(all_in_height), len(all_in_width)):
            return None

        frames, self._frames = self._frames, None
        if t > 0:
            assert self._before is not None
            blend_(self._before, frames, in_time.blend, dim=1)
        if t + 1 < len(all_in_time):
            self._before = _tail(frames, all_in_time[t + 1].blend, dim=1).clone()
        return frames[:, : in_time.keep]


def blend_(before: torch.Tensor, values: torch.Tensor, extent: int, dim: int) -> None:
    """Mix the beginning of a tile with the end of the one before it, in place.

    Args:
        before, values: ``[C, f, h, w]``, alike but along ``dim``.
        extent: values that are mixed at most: from all of ``before`` to all of ``values``, evenly.
    """
    extent = min(extent, before.shape[dim], values.shape[dim])
    if extent == 0:
        return
    shape = [extent if each == dim else 1 for each in range(values.ndim)]
    rising = (torch.arange(extent, dtype=torch.float64) / extent).view(shape)
    # Half precision is multiplied in float32 and rounded, as with the numbers that diffusers uses.
    exact = torch.promote_types(values.dtype, torch.float32)
    falling, rising = (weights.to(values.device, exact) for weights in (1 - rising, rising))
    own = values.narrow(dim, 0, extent)
    others = (_tail(before, extent, dim) * falling).to(values.dtype)
    torch.add(others, (own * rising).to(values.dtype), out=own)


def _tail(values: torch.Tensor, count: int, dim: int) -> torch.Tensor:
    """The last values along a dimension, or all where there are fewer."""
    count = min(count, values.shape[dim])
    return values.narrow(dim, values.shape[dim] - count, count)
