"""Arithmetic on a model's configuration and a request's sizes; needs no weights and no torch.

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
    """Sizes of an autoencoder, from its configuration.

    Attributes:
        latent_channels: Channels of the latents.
        spatial_ratio: Pixels per latent, in height and in width.
        temporal_ratio: Frames per latent frame. The first latent frame is a single frame.
        tile_size: Frames, height and width of a diffusers tile.
        tile_stride: Distance between neighboring tiles, in frames, height and width.
    """

    latent_channels: int
    spatial_ratio: int
    temporal_ratio: int
    tile_size: tuple[int, int, int]
    tile_stride: tuple[int, int, int]

    @property
    def ratios(self) -> tuple[int, int, int]:
        """Compression along time, height and width."""
        return self.temporal_ratio, self.spatial_ratio, self.spatial_ratio

    def grid(self, request: ResolvedRequest, patch: tuple[int, int, int]) -> LatentGrid:
        """The latent grid of a request."""
        frames = (request.num_frames - 1) // self.temporal_ratio + 1
        rows, columns = request.height // self.spatial_ratio, request.width // self.spatial_ratio
        shape = (request.num_videos, self.latent_channels, frames, rows, columns)
        return LatentGrid(shape, patch)

    def video_size(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """Frames, height and width of the video that latents of this size decode to."""
        in_space = self.spatial_ratio
        return (frames - 1) * self.temporal_ratio + 1, rows * in_space, columns * in_space


@dataclass(frozen=True)
class ImageSpec:
    """How an image-to-video model uses its picture.

    Attributes:
        num_tokens: Picture tokens before those of the prompt, minus the template tokens dropped
            after the prompt.
        dropped_frames: Decoded frames discarded at the start of the video.
    """

    num_tokens: int
    dropped_frames: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """Sizes, defaults and costs of a model, from its configuration.

    Attributes:
        num_heads: Number of attention heads.
        head_size: Values per attention head.
        size_multiple: Height and width are multiples of this number of pixels.
        frames_multiple: k, where the number of frames is ``1 + n * k``.
        autoencoder: Sizes of the autoencoder.
        defaults: Defaults for the fields that a request omits.
        flow_shift: Timestep shift of the model's own scheduler.
        patch: Latent frames, rows and columns per token.
        costs: Cost model of the transformer, the text encoders and the autoencoder. A family
            without arithmetic leaves it out: its work is counted (``registry.inspect``).
        image: How the model uses its picture; None for a text-to-video model.
    """

    num_heads: int
    head_size: int
    size_multiple: int
    frames_multiple: int
    autoencoder: AutoencoderSpec
    defaults: ModelDefaults
    flow_shift: float
    patch: tuple[int, int, int]
    costs: ModelCosts = None  # type: ignore[assignment]  # set by registry.inspect
    image: ImageSpec | None = None

    @property
    def pictures(self) -> dict[str, str]:
        """Request fields of the pictures that the model takes."""
        return {} if self.image is None else {"image": "required"}

    def num_passes(self, request: ResolvedRequest) -> int:
        """Passes through the transformer per step."""
        return 2 if request.uses_true_cfg else 1

    @property
    def dropped_frames(self) -> int:
        """Decoded frames discarded at the start of the video; 0 for a text-to-video model."""
        return 0 if self.image is None else self.image.dropped_frames

    def text_tokens(self, request: ResolvedRequest) -> int:
        """Largest number of prompt and picture tokens of a request."""
        image_tokens = 0 if self.image is None else self.image.num_tokens
        return request.max_sequence_length + image_tokens

    def grid(self, request: ResolvedRequest) -> LatentGrid:
        """The latent grid of a request."""
        return self.autoencoder.grid(request, self.patch)


@dataclass(frozen=True)
class LatentGrid:
    """Shape of a batch of latents, and their division into tokens.

    Args:
        shape: B, C, F, H, W.
        patch: Latent frames, rows and columns per token.
    """

    shape: tuple[int, int, int, int, int]
    patch: tuple[int, int, int]

    @property
    def tokens_shape(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        frames, height, width = (
            size // step for size, step in zip(self.shape[2:], self.patch, strict=True)
        )
        return frames, height, width

    @property
    def num_tokens(self) -> int:
        """Tokens of one video."""
        return math.prod(self.tokens_shape)

    def patchify(self, latents: torch.Tensor) -> torch.Tensor:
        """``[B, C, F, H, W]`` to ``[B, S, P]``, P in the order channel, frame, row, column."""
        batch, channels = self.shape[:2]
        split = [size for pair in zip(self.tokens_shape, self.patch, strict=True) for size in pair]
        patches = latents.reshape(batch, channels, *split).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return patches.reshape(batch, self.num_tokens, -1)

    def unpatchify(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`patchify`."""
        batch, channels = self.shape[:2]
        patches = tokens.reshape(batch, *self.tokens_shape, channels, *self.patch)
        return patches.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(self.shape)

    def noise(self, seed: int) -> torch.Tensor:
        """Draw the initial noise of the whole video, as diffusers does from a CPU generator.

        Returns:
            ``[B, C, F, H, W]``, float32, on the CPU; identical on every rank.
        """
        import torch

        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(self.shape, generator=generator, dtype=torch.float32)


def shards_of(
    num_video_tokens: int, num_text_tokens: int, dims: ParallelDims
) -> tuple[TokenShards, TokenShards, TokenShards]:
    """Assign the tokens of ``[video ; text]`` to ranks.

    Token counts per rank differ by one at most, both for the video and for the whole sequence. The
    assignment of video tokens does not depend on the text.

    Returns:
        The shards of the whole sequence, of the video and of the text.
    """
    whole = TokenShards.even((num_video_tokens, num_text_tokens), dims)
    num_tokens = num_video_tokens + num_text_tokens
    return (
        whole,
        whole.segment(range(num_video_tokens)),
        whole.segment(range(num_video_tokens, num_tokens)),
    )
