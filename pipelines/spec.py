"""Arithmetic on a model's configuration and a request's sizes; needs no weights and no torch.

Legend: B videos, C channels, F H W latent frames, height and width, S tokens of the whole video, P
values in one token (C x patch).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from longtake.configs.families import FamilyOptions
from longtake.configs.fields.few_step import FewStep
from longtake.configs.models import ModelDefaults
from longtake.configs.request import Rendering, ResolvedRequest
from longtake.parallel import ParallelDims, TokenShards
from longtake.pipelines.costs import ModelCosts

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderSpec:
    """Sizes of an autoencoder, from its configuration.

    Attributes:
        latent_channels: Channels of the latents.
        spatial_ratio: Pixels per latent, in height and in width.
        temporal_ratio: Frames per latent frame, but for the first.
        tile_size: Frames, height and width of a diffusers tile.
        tile_stride: Distance between neighboring tiles, in frames, height and width.
        first_frames: Frames of the first latent frame.
    """

    latent_channels: int
    spatial_ratio: int
    temporal_ratio: int
    tile_size: tuple[int, int, int]
    tile_stride: tuple[int, int, int]
    first_frames: int = 1

    @property
    def ratios(self) -> tuple[int, int, int]:
        """Compression along time, height and width."""
        return self.temporal_ratio, self.spatial_ratio, self.spatial_ratio

    def grid(self, request: ResolvedRequest, patch: tuple[int, int, int]) -> LatentGrid:
        """The latent grid of a request."""
        frames = (request.num_frames - self.first_frames) // self.temporal_ratio + 1
        rows, columns = request.height // self.spatial_ratio, request.width // self.spatial_ratio
        shape = (request.num_videos, self.latent_channels, frames, rows, columns)
        return LatentGrid(shape, patch)

    def video_size(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """Frames, height and width of the video that latents of this size decode to."""
        in_time = (frames - 1) * self.temporal_ratio + self.first_frames
        return in_time, rows * self.spatial_ratio, columns * self.spatial_ratio


Presence = Literal["required", "optional"]
"""Whether a model needs a picture, or also renders without it."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Sizes, defaults and costs of a model, and what it takes, from its configuration.

    Families subclass it for what they resolve and count in their own way.

    Attributes:
        num_heads: Number of attention heads.
        head_size: Values per attention head.
        size_multiple: Height and width are multiples of this number of pixels.
        frames_multiple: k, where the number of frames is ``fewest_frames + n * k``.
        autoencoder: Sizes of the autoencoder.
        defaults: Defaults for the fields that a request omits.
        flow_shift: Timestep shift of the model's own scheduler.
        patch: Latent frames, rows and columns per token.
        costs: Cost model of the transformer, the text encoders and the autoencoder. A family
            without arithmetic leaves it out: its work is counted (``registry.inspect``).
        options: The options of the family that this model takes.
        scale_field: Request field of the scale of classifier-free guidance, which is off at 1 or
            less; None if the model has no such guidance.
        pictures: The pictures that the model takes, by request field, in the order of the video.
        few_step_presets: Settings of released few-step models and LoRAs of this kind, by name.
        dropped_frames: Decoded frames discarded at the start of the video.
        tiles_time: Whether the autoencoder can decode in tiles of time.
        gguf_value_bytes: Mean bytes of a value of the transformers, if all of them are in GGUF
            files of fewer bits; else 0.
        model: The model as the user named it, for messages.
        family: Name of the family, for messages.
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
    options: type[FamilyOptions] = FamilyOptions
    scale_field: str | None = None
    pictures: Mapping[str, Presence] = field(default_factory=dict)
    few_step_presets: Mapping[str, FewStep] = field(default_factory=dict)
    dropped_frames: int = 0
    tiles_time: bool = True
    gguf_value_bytes: float = 0.0
    model: str = ""
    family: str = ""

    def resolve_fields(self, request: Rendering) -> dict[str, Any]:
        """The fields whose meaning depends on the family, filled in.

        They are ``guidance_scale``, ``flow_shift``, ``negative_prompt`` and the options: what the
        request gives, else the model's default.

        Raises:
            RequestError: The model does not support a value.
        """
        names = ("guidance_scale", "negative_prompt", *self.options.model_fields)
        fields = {name: self._given(request, name) for name in names}
        fields["flow_shift"] = self._given(request, "flow_shift") or self.flow_shift
        if self.scale_field is None:
            return fields
        scale = fields[self.scale_field]
        if scale > 1:
            return {**fields, "negative_prompt": fields["negative_prompt"] or ""}
        if request.negative_prompt:
            logger.warning(
                "negative_prompt has no effect with %s=%g, which must be above 1",
                self.scale_field,
                scale,
            )
        return {**fields, "negative_prompt": request.negative_prompt}

    def cfg_scale(self, request: ResolvedRequest) -> float:
        """Scale of classifier-free guidance; 1 if it is off."""
        scale = None if self.scale_field is None else getattr(request, self.scale_field)
        return max(1.0, scale or 1.0)

    def prompts(self, request: ResolvedRequest) -> list[str]:
        """The prompt of each pass: with classifier-free guidance, also the negative one."""
        return [request.prompt, request.negative_prompt or ""][: self.num_passes(request)]

    def num_passes(self, request: ResolvedRequest) -> int:
        """Transformer passes of one step: 2 with classifier-free guidance."""
        return 2 if self.cfg_scale(request) > 1 else 1

    def costs_of(self, request: ResolvedRequest) -> ModelCosts:
        """Cost model of a request; the same for all unless overridden."""
        return self.costs

    def text_tokens(self, request: ResolvedRequest) -> int:
        """Largest number of tokens that the text encoder gives for a prompt of the request."""
        return request.max_sequence_length

    def joint_tokens(self, request: ResolvedRequest) -> int:
        """Largest number of tokens split over the ranks beside the video's, in one sequence."""
        return 0

    def guidance_fields(self, *, guided: bool) -> dict[str, Any]:
        """Request fields that turn classifier-free guidance on, at a small scale, or off.

        Empty if the model has no such guidance.
        """
        if self.scale_field is None:
            return {}
        return {self.scale_field: 1.5 if guided else 1.0}

    @property
    def guidance_options(self) -> tuple[str, ...]:
        """Request fields that set classifier-free guidance."""
        return () if self.scale_field is None else (self.scale_field,)

    @property
    def fewest_frames(self) -> int:
        """Frames of the shortest video: those of the first latent frame."""
        return self.autoencoder.first_frames

    @property
    def required_pictures(self) -> tuple[str, ...]:
        """Request fields of the pictures that the model does not render without."""
        return tuple(name for name, needed in self.pictures.items() if needed == "required")

    def grid(self, request: ResolvedRequest) -> LatentGrid:
        """The latent grid of a request."""
        return self.autoencoder.grid(request, self.patch)

    def _given(self, request: Rendering, name: str) -> Any:
        """The value of a field in the request, else the model's default."""
        given = getattr(request, name)
        return getattr(self.defaults, name, None) if given is None else given


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
    num_video_tokens: int, num_joint_tokens: int, dims: ParallelDims
) -> tuple[TokenShards, TokenShards, TokenShards]:
    """Assign the tokens of ``[video ; joint]`` to ranks.

    Token counts per rank differ by one at most, both for the video and for the whole sequence. The
    assignment of video tokens does not depend on the joint ones.

    Args:
        num_video_tokens: Tokens of the video.
        num_joint_tokens: Tokens beside them in one sequence, such as those of the text; 0 for a
            model whose text stands in cross attention alone.
        dims: Parallel degrees.

    Returns:
        The shards of the whole sequence, of the video and of the joint tokens.
    """
    whole = TokenShards.even((num_video_tokens, num_joint_tokens), dims)
    num_tokens = num_video_tokens + num_joint_tokens
    return (
        whole,
        whole.segment(range(num_video_tokens)),
        whole.segment(range(num_video_tokens, num_tokens)),
    )
