"""Tiling of videos: the region that each tile covers, and the rank that computes it; without torch.

Legend: B videos, C channels, F H W frames, rows and columns of the whole input; lower case: of one
tile. When decoding, the input is latents and the output pixels; when encoding, vice versa.
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
    """The extent of a tile along one axis.

    Attributes:
        input_slice: Positions of the input that the tile covers.
        output_slice: Part of the tile's output that is used.
        output_size: Length of the used output.
        blend: Number of leading values that are blended with the end of the previous tile.
        keep: Number of leading values that are final after blending; the rest overlaps the next
            tile.
    """

    input_slice: slice
    output_slice: slice
    output_size: int
    blend: int
    keep: int

    @property
    def input_size(self) -> int:
        """Number of input positions that the tile covers."""
        return int(self.input_slice.stop - self.input_slice.start)


Spans = tuple[Sequence[Span], Sequence[Span], Sequence[Span]]
"""Spans along time, height and width; the tiles are all combinations of them."""


def overlapping_spans(
    length: int, size: int, stride: int, output_size: Callable[[int], int], first: int = 0
) -> list[Span]:
    """Tile an axis at even distances, as diffusers' autoencoders do.

    Args:
        length: Length of the input.
        size: Input length of a tile.
        stride: Input distance between neighboring tiles.
        output_size: Output length as a function of the input length.
        first: Number of leading input positions that each produce a single output value: 1 for an
            autoencoder that is causal in time. Every tile covers that many more positions; all
            tiles but the first discard their output.
    """
    size_out, stride_out = output_size(size + first) - first, output_size(stride + first) - first
    spans = []
    for start in range(0, length, stride):
        stop = min(start + size + first, length)
        dropped = first if start > 0 else 0
        count = output_size(stop - start) - dropped
        if count == 0:  # a causal tile that consists of its first position
            continue
        spans.append(
            Span(
                input_slice=slice(start, stop),
                output_slice=slice(dropped, None),
                output_size=count,
                blend=size_out - stride_out if start > 0 else 0,
                keep=min(count, stride_out + first - dropped),
            )
        )
    return spans


def single_span(length: int, output_size: Callable[[int], int]) -> list[Span]:
    """One tile that covers the whole axis."""
    count = output_size(length)
    return [Span(slice(0, length), slice(None), count, blend=0, keep=count)]


class TileCoder(ABC):
    """An encoder or a decoder that runs on tiles: the part that differs between families.

    Attributes:
        channels: Number of output channels.
        dtype: Dtype of the output, in which tiles are blended.
    """

    channels: int
    dtype: torch.dtype

    @abstractmethod
    def spans(self, shape: Sequence[int]) -> Spans:
        """The tiling of an input of shape ``(F, H, W)``."""

    @abstractmethod
    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encode or decode tiles of one shape, ``[b, C, f, h, w]``; the output is untrimmed."""

    def peak_bytes(self, shape: Sequence[int], device: torch.device) -> int:
        """Peak memory of :meth:`run` on an input of this shape, without kernels' workspace.

        Args:
            shape: b, C, f, h, w.
            device: Device of the input and the weights.
        """
        from longtake.pipelines.codec.memory import peak_bytes

        return peak_bytes(self.run, tuple(shape), device)

    def finish(self, values: torch.Tensor) -> torch.Tensor:
        """Postprocess blended values, ``[C, f, H, W]``; some families unpatchify here."""
        return values


@dataclass(frozen=True)
class Tile:
    """One tile of one video.

    Attributes:
        video: Index of the video.
        index: Indices along time, height and width.
        spans: Extents along time, height and width.
    """

    video: int
    index: tuple[int, int, int]
    spans: tuple[Span, Span, Span]

    def slice_input(self, videos: torch.Tensor) -> torch.Tensor:
        """The tile's part of ``[B, C, F, H, W]``: ``[C, f, h, w]``."""
        frames, rows, columns = (span.input_slice for span in self.spans)
        return videos[self.video, :, frames, rows, columns]

    def trim_output(self, values: torch.Tensor) -> torch.Tensor:
        """The used part of the tile's output, ``[C, f, h, w]``."""
        frames, rows, columns = (span.output_slice for span in self.spans)
        return values[:, frames, rows, columns]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Frames, rows and columns of the input."""
        return tuple(span.input_size for span in self.spans)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Frames, rows and columns of the trimmed output."""
        return tuple(span.output_size for span in self.spans)

    @property
    def cost(self) -> int:
        """Relative cost: the number of output values, including those trimmed off."""
        return math.prod(span.output_size + (span.output_slice.start or 0) for span in self.spans)


@dataclass(frozen=True)
class TilePlan:
    """All tiles of a batch of videos in the order of blending, and the rank that computes each.

    Args:
        spans: Tiling of each video.
        num_videos: Number of videos, all of the same shape.
        num_ranks: Number of ranks that share the work.
    """

    spans: Spans
    num_videos: int
    num_ranks: int

    @cached_property
    def tiles(self) -> list[Tile]:
        """The tiles, ordered by video, then time, height and width."""
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

        Tiles are assigned by descending cost, each to the least loaded rank, so that all ranks
        finish at about the same time. Tiles of equal cost are assigned in order, so each part of
        the video is spread over all ranks.

        Source: Graham's longest-processing-time rule, SIAM J. Appl. Math. 17(2), 1969.
        """
        owners, loads = [0] * len(self.tiles), [0] * self.num_ranks
        for number in sorted(range(len(owners)), key=lambda each: -self.tiles[each].cost):
            owners[number] = min(range(self.num_ranks), key=loads.__getitem__)
            loads[owners[number]] += self.tiles[number].cost
        return owners

    def tiles_of(self, rank: int) -> list[Tile]:
        """A rank's tiles, in order."""
        return [tile for tile, owner in zip(self.tiles, self.owners, strict=True) if owner == rank]
