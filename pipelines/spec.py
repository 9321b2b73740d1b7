"""What can be said of a model and of a video before anything is loaded: arithmetic, without torch.

Legend: B videos, C channels, F H W latent frames, height and width, S tokens of the whole video, P
values in one token (C x patch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longtake.configs.models import ModelDefaults
from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims, TokenShards
from longtake.pipelines.costs import ModelCosts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AutoencoderSpec:
    """What can be said of an autoencoder before it is loaded.

    Attributes:
        latent_channels: of its latents.
        spatial_ratio: pixels to a latent, in height and in width.
        temporal_ratio: frames to a latent frame, but for the first, which is one frame.
        tile_size, tile_stride: frames, height and width of diffusers' tiles, and from one to the
            next.
    """

    latent_channels: int
    spatial_ratio: int
    temporal_ratio: int
    tile_size: tuple[int, int, int]
    tile_stride: tuple[int, int, int]

    @property
    def ratios(self) -> tuple[int, int, int]:
        """In time, height and width."""
        return self.temporal_ratio, self.spatial_ratio, self.spatial_ratio

    def grid(self, request: ResolvedRequest, patch: tuple[int, int, int]) -> LatentGrid:
        """The latents of a request, and how they become tokens."""
        frames = (request.num_frames - 1) // self.temporal_ratio + 1
        rows, columns = request.height // self.spatial_ratio, request.width // self.spatial_ratio
        shape = (request.num_videos, self.latent_channels, frames, rows, columns)
        return LatentGrid(shape, patch)

    def video_size(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """Frames, height and width of some latents."""
        in_space = self.spatial_ratio
        return (frames - 1) * self.temporal_ratio + 1, rows * in_space, columns * in_space


@dataclass(frozen=True)
class ImageSpec:
    """How a model takes the picture that its videos begin with.

    Attributes:
        num_tokens: of the picture, that stand before those of the prompt, less those of the
            template behind it that are dropped.
        dropped_frames: at the start of what is decoded.
    """

    num_tokens: int
    dropped_frames: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """What can be said of a model before it is loaded.

    Attributes:
        num_heads, head_size: of its attention.
        size_multiple: pixels that height and width are a multiple of.
        frames_multiple: k of "frames are one more than a multiple of k".
        autoencoder: what turns its latents into frames.
        defaults: what a request leaves out.
        flow_shift: of its own scheduler.
        patch: latent frames, rows and columns that make one token.
        costs: what its work comes to.
        image: None of a text-to-video model.
    """

    num_heads: int
    head_size: int
    size_multiple: int
    frames_multiple: int
    autoencoder: AutoencoderSpec
    defaults: ModelDefaults
    flow_shift: float
    patch: tuple[int, int, int]
    costs: ModelCosts
    image: ImageSpec | None = None

    @property
    def dropped_frames(self) -> int:
        """At the start of what is decoded: a video has so many fewer than its latents say."""
        return 0 if self.image is None else self.image.dropped_frames

    def text_tokens(self, request: ResolvedRequest) -> int:
        """The most tokens that a prompt of a request has, with those of its picture."""
        of_picture = 0 if self.image is None else self.image.num_tokens
        return request.max_sequence_length + of_picture

    def grid(self, request: ResolvedRequest) -> LatentGrid:
        """The latents of a request."""
        return self.autoencoder.grid(request, self.patch)


@dataclass(frozen=True)
class LatentGrid:
    """The shape of the latents of some videos, and how they become tokens.

    Args:
        shape: B, C, F, H, W.
        patch: latent frames, rows and columns that make one token.
    """

    shape: tuple[int, int, int, int, int]
    patch: tuple[int, int, int]

    @property
    def cells(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        frames, height, width = (
            size // step for size, step in zip(self.shape[2:], self.patch, strict=True)
        )
        return frames, height, width

    @property
    def num_tokens(self) -> int:
        """Tokens of one video."""
        return math.prod(self.cells)

    def patchify(self, latents: torch.Tensor) -> torch.Tensor:
        """``[B, C, F, H, W]`` to ``[B, S, P]``, P in the order channel, frame, row, column."""
        batch, channels = self.shape[:2]
        split = [size for pair in zip(self.cells, self.patch, strict=True) for size in pair]
        cells = latents.reshape(batch, channels, *split).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return cells.reshape(batch, self.num_tokens, -1)

    def unpatchify(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`patchify`."""
        batch, channels = self.shape[:2]
        cells = tokens.reshape(batch, *self.cells, channels, *self.patch)
        return cells.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(self.shape)

    def noise(self, seed: int) -> torch.Tensor:
        """The noise of the whole video: what diffusers draws from a CPU generator of that seed.

        Returns:
            ``[B, C, F, H, W]``, float32, on the CPU; the same on every rank.
        """
        import torch

        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(self.shape, generator=generator, dtype=torch.float32)


def shards_of(
    num_video_tokens: int, num_text_tokens: int, dims: ParallelDims
) -> tuple[TokenShards, TokenShards, TokenShards]:
    """Who owns which tokens of ``[video ; text]``: of the whole sequence, the video, the text.

    Counts differ by one at most, of the video and of both together; who owns which of the video
    does not depend on the text.
    """
    whole = TokenShards.even((num_video_tokens, num_text_tokens), dims)
    num_tokens = num_video_tokens + num_text_tokens
    return (
        whole,
        whole.segment(range(num_video_tokens)),
        whole.segment(range(num_video_tokens, num_tokens)),
    )
