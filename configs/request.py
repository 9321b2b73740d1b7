"""What a user asks for. The command line, config files and requests to workers are read off it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from longtake.configs.base import NamedPath, StrictModel, written_as
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
"""Characters."""

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
Digest = Annotated[str, written_as(r"[0-9a-f]{64}", "64 hexadecimal digits, as sha256sum prints")]
OutputType = Literal["frames", "latents"]
DecodeMode = Literal["tiled", "framewise", "whole"]
I2vMode = Literal["stable", "dynamic"]
ResizeMode = Literal["crop", "pad", "stretch"]
TileSize = tuple[Frames, Pixels, Pixels]
"""Frames, height and width."""


class PromptTemplate(StrictModel):
    """The words that a prompt is put between before it is encoded.

    Attributes:
        template: with ``{}`` where the prompt goes.
        crop_start: tokens of the template in front of the prompt, dropped once encoded.
    """

    template: Annotated[str, Field(max_length=10_000)]
    crop_start: Annotated[int, Field(ge=0)]

    @field_validator("template")
    @classmethod
    def _takes_a_prompt(cls, template: str) -> str:
        rest = template.replace("{}", "", 1)
        if rest == template or "{" in rest or "}" in rest:
            raise ValueError("must hold {} once, where the prompt goes, and no other braces")
        return template


class DecodeRequest(StrictModel):
    """How latents become a video. What is left out is the model's default.

    Tiles change pixels, if little: neighbours are mixed where they overlap.
    """

    fps: Rate | None = Field(default=None, description="Frames a second of the written video")
    decode: DecodeMode | None = Field(
        default=None,
        description="In tiles of time, height and width; in tiles of time alone; or whole, where "
        "that fits",
    )
    decode_tile_size: TileSize | None = Field(
        default=None, description="Frames, height and width of a tile; diffusers': 16 256 256"
    )
    decode_tile_stride: TileSize | None = Field(
        default=None,
        description="Frames, height and width from one tile to the next; diffusers': 12 192 192, "
        "or three quarters of the tile size",
    )
    embed_metadata: bool = Field(
        default=True,
        description="Write the prompt, the seed and the model into the video's file as well",
    )


class Rendering(DecodeRequest):
    """What a video follows from, its size and length in pixels and frames."""

    prompt: str = Field(max_length=MAX_PROMPT, description="What to show")
    negative_prompt: str | None = Field(
        default=None,
        max_length=MAX_PROMPT,
        description="What not to show; used with a true CFG scale above 1 (then empty if left out)",
    )
    image: NamedPath | None = Field(
        default=None,
        description="Picture that the video begins with, PNG, JPEG or WebP; for image-to-video "
        "models",
    )
    image_sha256: Digest | None = Field(
        default=None, description="SHA-256 of the picture's file, which must then be this one"
    )
    i2v_mode: I2vMode | None = Field(
        default=None,
        description="How the noise begins: with a little of the picture in it (stable; the "
        "default), or without (dynamic; more motion, and another flow shift)",
    )
    resize_mode: ResizeMode | None = Field(
        default=None,
        description="How the picture is brought to the video's size: its middle (crop; the "
        "default), between bars (pad), or distorted (stretch)",
    )
    height: Pixels | None = Field(
        default=None,
        description="Height in pixels; of a picture: the nearest of the model's own sizes",
    )
    width: Pixels | None = Field(default=None, description="Width in pixels; likewise")
    num_frames: Frames | None = Field(
        default=None, description="Frames, 4k+1 for HunyuanVideo: 1, 5, 9, ... 129"
    )
    num_inference_steps: Steps | None = Field(default=None, description="Denoising steps")
    sigmas: Sigmas | None = Field(
        default=None,
        description="Noise levels to step through, falling from at most 1 and before the shift; "
        "one a step",
    )
    guidance_scale: Scale | None = Field(
        default=None, description="Guidance that the model was distilled with, embedded"
    )
    true_cfg_scale: Scale = Field(
        default=1.0,
        description="Classifier-free guidance by a second, negative branch, where above 1",
    )
    flow_shift: Shift | None = Field(
        default=None, description="Shift of the noise levels; larger spends more steps on layout"
    )
    seed: Seed | None = Field(default=None, description="Seed of the noise; drawn if left out")
    num_videos: Videos = Field(default=1, description="Videos of this prompt, rendered together")
    prompt_template: PromptTemplate | None = Field(
        default=None, description="Words that the prompt is put between before it is encoded"
    )
    max_sequence_length: TextTokens | None = Field(
        default=None, description="Tokens of the prompt that are used at most"
    )
    output_type: OutputType = Field(
        default="frames", description="Frames, or latents alone, which are not decoded"
    )

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must hold more than blanks")
        return prompt

    @field_validator("sigmas")
    @classmethod
    def _falling(cls, sigmas: Sigmas | None) -> Sigmas | None:
        if sigmas and any(later >= sigma for sigma, later in zip(sigmas, sigmas[1:], strict=False)):
            raise ValueError("must fall from each step to the next")
        return sigmas

    @property
    def uses_true_cfg(self) -> bool:
        """Whether each step has a second, negative branch."""
        return self.true_cfg_scale > 1


class VideoRequest(Rendering):
    """One video to render, or several of one prompt. What is left out is the model's default."""

    size: Size | None = Field(
        default=None, description="Width and height in pixels, in the place of both: 1280x720"
    )
    resolution: Resolution | None = Field(
        default=None,
        description="The shorter side, 480p, 720p or 1080p say, in the place of height and width; "
        "the nearest that the model can have",
    )
    aspect_ratio: AspectRatio | None = Field(
        default=None,
        description="Width to height, 16:9 or 2.39:1 say; by itself with as many pixels as the "
        "model's default",
    )
    seconds: Length | None = Field(
        default=None,
        description="Length, in the place of num_frames; the nearest that the model can have",
    )

    @model_validator(mode="after")
    def _said_once(self) -> VideoRequest:
        """Nothing is said in two ways."""
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
    def left_at_default(self) -> set[str]:
        """Fields of later versions that say nothing here: a request is told from others without
        them, so that it is still the one that an earlier version rendered."""
        kept = {"embed_metadata"} if self.embed_metadata else set()
        return kept | {name for name in SHORTHANDS if getattr(self, name) is None}


NOT_OF_THE_LATENTS = frozenset({*DecodeRequest.model_fields, "output_type", "image"})
"""What of a request changes no latents; a picture is known by its digest, wherever it lies."""


class ResolvedDecode(DecodeRequest):
    """How some latents become a video, with nothing left out; ``whole`` alone has no tiles."""

    height: Pixels
    width: Pixels
    num_frames: Frames
    num_videos: Videos = 1
    fps: Rate
    decode: DecodeMode


class ResolvedRequest(ResolvedDecode, Rendering):
    """A request with nothing left out: it renders the same video whatever the defaults become.

    A ``prompt_template`` that is still None is diffusers' own.
    """

    height: Pixels
    width: Pixels
    num_frames: Frames
    num_inference_steps: Steps
    guidance_scale: Scale
    flow_shift: Shift
    seed: Seed
    max_sequence_length: TextTokens
