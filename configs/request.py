"""The request for a video, from which CLI options, config files and HTTP fields are derived."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from longtake.configs.base import NamedPath, StrictModel
from longtake.configs.families import FamilyOptions, installed_families, merge_options
from longtake.configs.field_types import (
    MAX_PROMPT,
    DecodeMode,
    Digest,
    FewStepName,
    Frames,
    OutputType,
    Pixels,
    Rate,
    ResizeMode,
    Scale,
    Seed,
    Shift,
    Sigmas,
    Steps,
    TextTokens,
    TileSize,
    Videos,
)
from longtake.configs.fields.lora import LoraText, parse_lora
from longtake.configs.fields.sizes import SHORTHANDS, AspectRatio, Length, Resolution, Size

Loras = Annotated[tuple[LoraText, ...], Field(min_length=1, max_length=16)]


class DecodeRequest(StrictModel):
    """How latents are decoded to a video. Fields left out take the model's defaults.

    Tiling changes pixels slightly, because overlapping tiles are blended.
    """

    fps: Rate | None = Field(default=None, description="Frames per second of the written video")
    decode: DecodeMode | None = Field(
        default=None,
        description="Decode in tiles (tiled), in tiles of time alone (framewise), or all at once "
        "(whole)",
    )
    decode_tile_size: TileSize | None = Field(
        default=None,
        description="Frames, height and width of a tile; those of diffusers by default, such as "
        "16 256 256",
    )
    decode_tile_stride: TileSize | None = Field(
        default=None,
        description="Frames, height and width between the starts of tiles; those of diffusers by "
        "default, or three quarters of a given tile size",
    )
    embed_metadata: bool = Field(
        default=True,
        description="Write the prompt, seed and model into the video file too",
    )


class CommonRendering(DecodeRequest):
    """The fields of :class:`Rendering` that are not options of one model family."""

    prompt: str = Field(max_length=MAX_PROMPT, description="What the video shows")
    negative_prompt: str | None = Field(
        default=None,
        max_length=MAX_PROMPT,
        description="What the video should not show; used with classifier-free guidance",
    )
    image: NamedPath | None = Field(
        default=None,
        description="Picture that the video starts from: PNG, JPEG or WebP; for image-to-video "
        "models",
    )
    image_sha256: Digest | None = Field(
        default=None, description="Expected SHA-256 of the picture file"
    )
    last_image: NamedPath | None = Field(
        default=None,
        description="Picture that the video ends with, in the same formats; for models that take "
        "one",
    )
    last_image_sha256: Digest | None = Field(
        default=None, description="Expected SHA-256 of the last picture's file"
    )
    resize_mode: ResizeMode | None = Field(
        default=None,
        description="How a picture is fitted to the video size: cut to its center (crop, the "
        "default), letterboxed (pad), or distorted (stretch)",
    )
    lora: Loras | None = Field(
        default=None,
        description="LoRAs to fuse into the transformer: FILE, FILE:SCALE or FILE:SCALE@COMPONENT, "
        "such as style.safetensors:0.8",
    )
    lora_sha256: tuple[Digest, ...] | None = Field(
        default=None, description="Expected SHA-256 of each LoRA's file"
    )
    lora_partial: bool = Field(
        default=False,
        description="Leave out tensors of a LoRA that fit nothing in the model, and name them in "
        "the .json; without it, such a LoRA is refused",
    )
    height: Pixels | None = Field(
        default=None,
        description="Height in pixels; with a picture, the closest of the model's sizes by default",
    )
    width: Pixels | None = Field(default=None, description="Width in pixels; the same default")
    num_frames: Frames | None = Field(
        default=None,
        description="Number of frames, 1 more than a multiple of the model's: 1, 5, 9, ... if that "
        "is 4",
    )
    num_inference_steps: Steps | None = Field(default=None, description="Number of denoising steps")
    sigmas: Sigmas | None = Field(
        default=None,
        description="Noise levels, one per step, falling from at most 1; the flow shift is applied "
        "to them",
    )
    guidance_scale: Scale | None = Field(
        default=None,
        description="Guidance scale: embedded in guidance-distilled models, else that of "
        "classifier-free guidance",
    )
    flow_shift: Shift | None = Field(
        default=None,
        description="Shift of the noise schedule; larger values spend more steps on composition",
    )
    few_step: FewStepName | None = Field(
        default=None,
        description="Settings of a model distilled to a few steps, for the fields left out: a "
        "preset of the model's family such as lightx2v-4step, those that the weights' file names "
        "(file, the default if it names any), or none",
    )
    seed: Seed | None = Field(
        default=None, description="Seed of the initial noise; random by default"
    )
    num_videos: Videos = Field(
        default=1, description="Number of videos of this prompt, rendered as one batch"
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

    @field_validator("lora", mode="before")
    @classmethod
    def _one_is_a_list(cls, lora: Any) -> Any:
        return (lora,) if isinstance(lora, str) else lora


if TYPE_CHECKING:

    class MergedOptions(FamilyOptions):
        """The options of all installed families; a family reads its own by FamilyOptions.of."""

else:
    MergedOptions = merge_options(
        installed_families().values(), {*SHORTHANDS, *CommonRendering.model_fields}
    )


class Rendering(MergedOptions, CommonRendering):
    """Everything that determines a video, with its size in pixels and its length in frames."""

    def gives(self, picture: str) -> bool:
        """Whether a picture is given, by its path or, once it was read, by its digest.

        Args:
            picture: The request field of its path.
        """
        given = (getattr(self, picture), getattr(self, f"{picture}_sha256"))
        return any(each is not None for each in given)

    @property
    def lora_scales(self) -> tuple[str, ...]:
        """Scale and component of each LoRA, without its file, such as ":0.8@transformer"."""
        uses = [parse_lora(each) for each in self.lora or ()]
        return tuple(str(replace(use, file="")) for use in uses)

    @property
    def picture_paths(self) -> dict[str, Path]:
        """Paths of the pictures that the request names, by field."""
        paths = {name: getattr(self, name) for name in PICTURES}
        return {name: path for name, path in paths.items() if path is not None}


class VideoRequest(Rendering):
    """A request for one or more videos of a prompt. Fields left out take the model's defaults."""

    if TYPE_CHECKING:  # options of families are arguments, too

        def __init__(self, /, **values: Any) -> None: ...

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

    def as_recorded(self) -> dict[str, Any]:
        """The fields as version 0.1 recorded them, as JSON values.

        Digests of equal requests are then equal, whichever version computed them: fields that were
        not given are left out, unless that version recorded them.
        """
        options = MergedOptions.model_fields
        earlier = {after: (name, value) for name, (after, value) in MergedOptions.recorded.items()}
        dumped, recorded = self.model_dump(mode="json"), {}
        for name, value in dumped.items():
            later = name in _LATER_FIELDS and value == _LATER_FIELDS[name]
            if name not in options and not later:
                recorded[name] = value
            if name in earlier:
                option, default = earlier[name]
                recorded[option] = default if dumped[option] is None else dumped[option]
        given = {name: dumped[name] for name in options if dumped[name] is not None}
        return {**recorded, **given}


_LATER_FIELDS = {
    "embed_metadata": True,
    "lora_partial": False,
    **dict.fromkeys(
        (*SHORTHANDS, "last_image", "last_image_sha256", "lora", "lora_sha256", "few_step")
    ),
}
"""Fields that version 0.1 did not have, by name, with their defaults."""

PICTURES = ("image", "last_image")
"""Request fields that hold the path of a picture; the digest is in ``image_sha256`` and so on."""

NON_LATENT_FIELDS = frozenset(
    {*DecodeRequest.model_fields, "output_type", *PICTURES, "lora", "lora_partial", "few_step"}
)
"""Request fields that do not affect the latents. Paths of pictures and LoRAs are such: digests
identify them, not paths. Scales of LoRAs do: see :attr:`Rendering.lora_scales`. The name of
few-step settings does not: they stand in the other fields."""


class ResolvedDecode(DecodeRequest):
    """How given latents are decoded, with all fields resolved. ``whole`` has no tile sizes."""

    height: Pixels
    width: Pixels
    num_frames: Frames
    num_videos: Videos = 1
    fps: Rate
    decode: DecodeMode


class ResolvedRequest(ResolvedDecode, Rendering):
    """A request with all fields resolved: it renders the same video even if defaults change."""

    @model_serializer(mode="wrap")
    def _without_absent_options(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that the model does not have: records outlive the family's package."""
        values: dict[str, Any] = dump(self)
        absent = MergedOptions.model_fields.keys() - MergedOptions.recorded.keys()
        return {
            name: value for name, value in values.items() if name not in absent or value is not None
        }

    height: Pixels
    width: Pixels
    num_frames: Frames
    num_inference_steps: Steps
    guidance_scale: Scale
    flow_shift: Shift
    seed: Seed
    max_sequence_length: TextTokens
