"""Tiles of a video: what each of them covers, and who computes it; without torch.

Legend: B videos, C channels, F H W frames, rows and columns; upper case of what goes in, lower case
of one tile. Cells are what goes in (latents, where a video is decoded), values what comes out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Span:
    """What one tile is along one axis.

    Attributes:
        cells: of the input that it covers.
        trim: of the values that come out, those that take part.
        size: number of values that take part.
        blend: values at its beginning that mix with the end of the tile before.
        keep: values from its beginning that stay once they are mixed; those behind them are
            there for the next tile to mix with.
    """

    cells: slice
    trim: slice
    size: int
    blend: int
    keep: int

    @property
    def num_cells(self) -> int:
        """Cells that it covers."""
        return int(self.cells.stop - self.cells.start)


Spans = tuple[Sequence[Span], Sequence[Span], Sequence[Span]]
"""The tiles along time, height and width; all combinations of them are the tiles."""


def overlapping(
    length: int, size: int, stride: int, values: Callable[[int], int], first: int = 0
) -> list[Span]:
    """Tiles at even distances, as diffusers' autoencoders cut an axis.

    Args:
        length: cells of the axis.
        size: cells of a tile.
        stride: cells from one tile to the next.
        values: how many values come of so many cells.
        first: cells at the beginning of the video that are worth one value each. Every tile takes
            as many more, and all but the first drop what comes of them. 1 where an autoencoder
            is causal in time.
    """
    size_values, stride_values = values(size + first) - first, values(stride + first) - first
    spans = []
    for start in range(0, length, stride):
        stop = min(start + size + first, length)
        dropped = first if start > 0 else 0
        count = values(stop - start) - dropped
        if count == 0:  # a causal tile of nothing but its first cell
            continue
        spans.append(
            Span(
                cells=slice(start, stop),
                trim=slice(dropped, None),
                size=count,
                blend=size_values - stride_values if start > 0 else 0,
                keep=min(count, stride_values + first - dropped),
            )
        )
    return spans


def single(length: int, values: Callable[[int], int]) -> list[Span]:
    """One tile that covers the whole axis."""
    count = values(length)
    return [Span(slice(0, length), slice(None), count, blend=0, keep=count)]


class TileCoder(ABC):
    """One direction of a family's autoencoder, as tiles see it: all that families do differently.

    Attributes:
        channels: of the values.
        dtype: of the values, in which tiles are mixed.
    """

    channels: int
    dtype: torch.dtype

    @abstractmethod
    def spans(self, shape: Sequence[int]) -> Spans:
        """How an input of ``(F, H, W)`` cells is cut."""

    @abstractmethod
    def code(self, cells: torch.Tensor) -> torch.Tensor:
        """Turn the cells of tiles of one shape, ``[b, C, f, h, w]``, into values, not trimmed."""

    def finish(self, values: torch.Tensor) -> torch.Tensor:
        """What becomes of mixed values, ``[C, f, H, W]``; some families unpatchify here."""
        return values


@dataclass(frozen=True)
class Tile:
    """One tile of one video.

    Attributes:
        video: number of its video.
        place: its number along time, height and width.
        spans: what it covers along each.
    """

    video: int
    place: tuple[int, int, int]
    spans: tuple[Span, Span, Span]

    def cells_of(self, videos: torch.Tensor) -> torch.Tensor:
        """Its part of ``[B, C, F, H, W]``: ``[C, f, h, w]``."""
        frames, rows, columns = (span.cells for span in self.spans)
        return videos[self.video, :, frames, rows, columns]

    def trimmed(self, values: torch.Tensor) -> torch.Tensor:
        """What takes part of its values, ``[C, f, h, w]``."""
        frames, rows, columns = (span.trim for span in self.spans)
        return values[:, frames, rows, columns]

    @property
    def cells_shape(self) -> tuple[int, ...]:
        """Cells along time, height and width."""
        return tuple(span.num_cells for span in self.spans)

    @property
    def values_shape(self) -> tuple[int, ...]:
        """Values that take part, along time, height and width."""
        return tuple(span.size for span in self.spans)

    @property
    def cost(self) -> int:
        """What computing it costs, in values that come out; those that are dropped count, too."""
        return math.prod(span.size + (span.trim.start or 0) for span in self.spans)


@dataclass(frozen=True)
class TilePlan:
    """All tiles of some videos, in the order in which they are put together, and who computes them.

    Args:
        spans: of each video.
        num_videos: of the same shape.
        num_ranks: that share the work.
    """

    spans: Spans
    num_videos: int
    num_ranks: int

    @cached_property
    def tiles(self) -> list[Tile]:
        """Video after video, then along time, height and width."""
        frames, rows, columns = (list(enumerate(spans)) for spans in self.spans)
        return [
            Tile(video, (t, i, j), (in_time, in_height, in_width))
            for video in range(self.num_videos)
            for t, in_time in frames
            for i, in_height in rows
            for j, in_width in columns
        ]

    @cached_property
    def owners(self) -> list[int]:
        """The rank that computes each tile.

        The costliest are dealt first, each to the rank that has least to do; so ranks finish
        together, and since tiles of one cost are dealt in order, each stretch of the video is
        spread over all of them, too.

        Source: Graham's longest-processing-time rule, SIAM J. Appl. Math. 17(2), 1969.
        """
        owners, loads = [0] * len(self.tiles), [0] * self.num_ranks
        for number in sorted(range(len(owners)), key=lambda each: -self.tiles[each].cost):
            owners[number] = min(range(self.num_ranks), key=loads.__getitem__)
            loads[owners[number]] += self.tiles[number].cost
        return owners

    def of_rank(self, rank: int) -> list[Tile]:
        """A rank's own tiles, in order."""
        return [tile for tile, owner in zip(self.tiles, self.owners, strict=True) if owner == rank]
