"""The request for a video, from which CLI options, config files and HTTP fields are derived."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from longtake.configs.base import NamedPath, StrictModel, matches
from longtake.configs.sizes import (
    MAX_FRAMES,
    MAX_PIXELS,
    SHORTHANDS,
    AspectRatio,
    Length,
    Resolution,
    Size,
)

MAX_SEED = 2**63 - 1
MAX_PROMPT = 100_000
"""Maximum length of a prompt in characters."""

Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
Frames = Annotated[int, Field(ge=1, le=MAX_FRAMES)]
Steps = Annotated[int, Field(ge=1, le=10000)]
Scale = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Shift = Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)]
Sigma = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Sigmas = Annotated[tuple[Sigma, ...], Field(min_length=1, max_length=10000)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Videos = Annotated[int, Field(ge=1, le=1024)]
Rate = Annotated[float, Field(ge=0.1, le=1000, allow_inf_nan=False)]
TextTokens = Annotated[int, Field(ge=1, le=100_000)]
Digest = Annotated[str, matches(r"[0-9a-f]{64}", "64 hexadecimal digits, as sha256sum prints")]
OutputType = Literal["frames", "latents"]
DecodeMode = Literal["tiled", "framewise", "whole"]
I2vMode = Literal["stable", "dynamic"]
ResizeMode = Literal["crop", "pad", "stretch"]
TileSize = tuple[Frames, Pixels, Pixels]
"""Frames, height and width."""


class PromptTemplate(StrictModel):
    """Text that surrounds a prompt when it is encoded.

    Attributes:
        template: The text, with ``{}`` in place of the prompt.
        crop_start: Number of leading template tokens whose embeddings are dropped.
    """

    template: Annotated[str, Field(max_length=10_000)]
    crop_start: Annotated[int, Field(ge=0)]

    @field_validator("template")
    @classmethod
    def _has_one_placeholder(cls, template: str) -> str:
        rest = template.replace("{}", "", 1)
        if rest == template or "{" in rest or "}" in rest:
            raise ValueError("must contain {} once, in place of the prompt, and no other braces")
        return template


class DecodeRequest(StrictModel):
    """How latents are decoded to a video. Fields left out take the model's defaults.

    Tiling changes pixels slightly, because overlapping tiles are blended.
    """

    fps: Rate | None = Field(default=None, description="Frames per second of the written video")
    decode: DecodeMode | None = Field(
        default=None,
        description="Decode in tiles of time, height and width (tiled), in tiles of time "
        "(framewise), or all at once (whole)",
    )
    decode_tile_size: TileSize | None = Field(
        default=None, description="Frames, height and width of a tile; 16 256 256 in diffusers"
    )
    decode_tile_stride: TileSize | None = Field(
        default=None,
        description="Frames, height and width between the starts of tiles; 12 192 192 in "
        "diffusers, three quarters of a given tile size",
    )
    embed_metadata: bool = Field(
        default=True,
        description="Write the prompt, seed and model into the video file too",
    )


class Rendering(DecodeRequest):
    """Everything that determines a video, with its size in pixels and its length in frames."""

    prompt: str = Field(max_length=MAX_PROMPT, description="What the video shows")
    negative_prompt: str | None = Field(
        default=None,
        max_length=MAX_PROMPT,
        description="What the video should not show; used with a true CFG scale above 1, empty by "
        "default",
    )
    image: NamedPath | None = Field(
        default=None,
        description="Picture that the video starts from: PNG, JPEG or WebP; for image-to-video "
        "models",
    )
    image_sha256: Digest | None = Field(
        default=None, description="Expected SHA-256 of the picture file"
    )
    i2v_mode: I2vMode | None = Field(
        default=None,
        description="Initial noise of image-to-video: mixed with some of the picture (stable, the "
        "default), or pure (dynamic: more motion, another flow shift)",
    )
    resize_mode: ResizeMode | None = Field(
        default=None,
        description="How the picture is fitted to the video size: cut to its center (crop, the "
        "default), letterboxed (pad), or distorted (stretch)",
    )
    height: Pixels | None = Field(
        default=None,
        description="Height in pixels; with a picture, the closest of the model's sizes by default",
    )
    width: Pixels | None = Field(default=None, description="Width in pixels; the same default")
    num_frames: Frames | None = Field(
        default=None, description="Number of frames, 4k+1 for HunyuanVideo: 1, 5, 9, ... 129"
    )
    num_inference_steps: Steps | None = Field(default=None, description="Number of denoising steps")
    sigmas: Sigmas | None = Field(
        default=None,
        description="Noise levels, one per step, falling from at most 1; the flow shift is applied "
        "to them",
    )
    guidance_scale: Scale | None = Field(
        default=None, description="Embedded guidance scale of guidance-distilled models"
    )
    true_cfg_scale: Scale = Field(
        default=1.0,
        description="Scale of classifier-free guidance, which above 1 computes a second, negative "
        "branch",
    )
    flow_shift: Shift | None = Field(
        default=None,
        description="Shift of the noise schedule; larger values spend more steps on composition",
    )
    seed: Seed | None = Field(
        default=None, description="Seed of the initial noise; random by default"
    )
    num_videos: Videos = Field(
        default=1, description="Number of videos of this prompt, rendered as one batch"
    )
    prompt_template: PromptTemplate | None = Field(
        default=None, description="Text that surrounds the prompt when it is encoded"
    )
    max_sequence_length: TextTokens | None = Field(
        default=None, description="Maximum number of prompt tokens; the rest is cut off"
    )
    output_type: OutputType = Field(
        default="frames", description="Decoded frames, or latents without decoding"
    )

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be blank")
        return prompt

    @field_validator("sigmas")
    @classmethod
    def _must_fall(cls, sigmas: Sigmas | None) -> Sigmas | None:
        if sigmas and any(later >= sigma for sigma, later in zip(sigmas, sigmas[1:], strict=False)):
            raise ValueError("must fall from each step to the next")
        return sigmas

    @property
    def uses_true_cfg(self) -> bool:
        """Whether each step computes a second, negative branch."""
        return self.true_cfg_scale > 1


class VideoRequest(Rendering):
    """A request for one or more videos of a prompt. Fields left out take the model's defaults."""

    size: Size | None = Field(
        default=None,
        description="Width and height in pixels, such as 1280x720; replaces height and width",
    )
    resolution: Resolution | None = Field(
        default=None,
        description="Shorter side, such as 480p, 720p or 1080p, rounded to what the model "
        "supports; replaces height and width",
    )
    aspect_ratio: AspectRatio | None = Field(
        default=None,
        description="Width to height, such as 16:9 or 2.39:1; without a resolution, about as many "
        "pixels as the model's default size",
    )
    seconds: Length | None = Field(
        default=None,
        description="Length in seconds, rounded to what the model supports; replaces num_frames",
    )

    @model_validator(mode="after")
    def _no_conflicts(self) -> VideoRequest:
        """Reject two fields that set the same thing."""
        others = ("height", "width", "resolution", "aspect_ratio")
        pairs = [("size", each) for each in others]
        pairs += [("resolution", "height"), ("resolution", "width"), ("seconds", "num_frames")]
        if self.height and self.width:
            pairs.append(("aspect_ratio", "width"))
        for one, other in pairs:
            values = getattr(self, one), getattr(self, other)
            if None not in values:
                raise ValueError(
                    f"{one}={values[0]} with {other}={values[1]}: leave one of them out"
                )
        return self

    @property
    def new_fields_at_default(self) -> set[str]:
        """Fields that earlier versions did not have and that are at their defaults.

        Comparisons ignore them, so that a request equals the same one recorded by an earlier
        version.
        """
        flags = {"embed_metadata"} if self.embed_metadata else set()
        return flags | {name for name in SHORTHANDS if getattr(self, name) is None}


NON_LATENT_FIELDS = frozenset({*DecodeRequest.model_fields, "output_type", "image"})
"""Request fields that do not affect the latents. ``image`` is one: the digest identifies a picture,
not the path."""


class ResolvedDecode(DecodeRequest):
    """How given latents are decoded, with all fields resolved. ``whole`` has no tile sizes."""

    height: Pixels
    width: Pixels
    num_frames: Frames
    num_videos: Videos = 1
    fps: Rate
    decode: DecodeMode


class ResolvedRequest(ResolvedDecode, Rendering):
    """A request with all fields resolved: it renders the same video even if defaults change.

    A ``prompt_template`` of None means that of diffusers.
    """

    height: Pixels
    width: Pixels
    num_frames: Frames
    num_inference_steps: Steps
    guidance_scale: Scale
    flow_shift: Shift
    seed: Seed
    max_sequence_length: TextTokens
