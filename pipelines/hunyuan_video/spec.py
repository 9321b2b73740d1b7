"""What HunyuanVideo's configuration files say, read without importing diffusers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from longtake.configs.models import defaults_of
from longtake.errors import ModelError, one_line
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.spec import AutoencoderSpec, ModelSpec

CLASSES = {
    "transformer": "HunyuanVideoTransformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo",
    "text_encoder": "LlamaModel",
    "text_encoder_2": "CLIPTextModel",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}

TILE_SIZE, TILE_STRIDE = (16, 256, 256), (12, 192, 192)
"""Frames, height and width: what AutoencoderKLHunyuanVideo of diffusers is made with."""

Count = Annotated[int, Field(strict=True, ge=1)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class _Component(BaseModel):
    """The fields of a config.json that longtake or every forward depends on; defaults: diffusers'.

    Fields that must be null or false are switches that are not supported.
    """

    quantization_config: None = None


class TransformerConfig(_Component):
    """HunyuanVideoTransformer3DModel's."""

    in_channels: Count = 16
    out_channels: Count | None = 16
    num_attention_heads: Count = 24
    attention_head_dim: Count = 128
    patch_size: Count = 2
    patch_size_t: Count = 1
    rope_theta: Positive = 256.0
    rope_axes_dim: tuple[Count, Count, Count] = (16, 56, 56)
    image_condition_type: Any = None

    @model_validator(mode="after")
    def _rope_fills_a_head(self) -> TransformerConfig:
        if sum(self.rope_axes_dim) != self.attention_head_dim or any(
            size % 2 for size in self.rope_axes_dim
        ):
            raise ValueError("rope_axes_dim must be even numbers that add up to attention_head_dim")
        return self


class VaeConfig(_Component):
    """AutoencoderKLHunyuanVideo's."""

    latent_channels: Count = 16
    spatial_compression_ratio: Count = 8
    temporal_compression_ratio: Count = 4
    scaling_factor: Positive = 0.476986


class SchedulerConfig(BaseModel):
    """FlowMatchEulerDiscreteScheduler's."""

    num_train_timesteps: Count = 1000
    shift: Annotated[float, Field(strict=True, ge=0.01, le=1000, allow_inf_nan=False)] = 1.0
    shift_terminal: None = None
    stochastic_sampling: Literal[False] | None = False
    use_dynamic_shifting: Literal[False] | None = False
    invert_sigmas: Literal[False] | None = False
    use_beta_sigmas: Literal[False] | None = False


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def inspect(checkpoint: Checkpoint) -> ModelSpec:
    """Check that a folder is a whole HunyuanVideo, and say what requests it can serve.

    Raises:
        ModelError: something is missing, damaged, not supported, or another model's.
    """
    for component, expected in CLASSES.items():
        found = checkpoint.component_class(component)
        if found != expected:
            raise ModelError(
                f"{checkpoint.model} has a {component} of class {found}: HunyuanVideo needs "
                f"{expected}"
            )
    for component in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        checkpoint.weights(component)
    for component in ("text_encoder", "text_encoder_2"):
        _read(_Component, checkpoint, component)
    for component in ("tokenizer", "tokenizer_2"):
        checkpoint.config(component, "tokenizer_config.json")
    transformer = _read(TransformerConfig, checkpoint, "transformer")
    vae = _read(VaeConfig, checkpoint, "vae")
    scheduler = _read(SchedulerConfig, checkpoint, "scheduler", "scheduler_config.json")
    if transformer.image_condition_type is not None:
        raise ModelError(
            f"{checkpoint.model} is conditioned on an image (image_condition_type="
            f"{transformer.image_condition_type!r}): use a text-to-video model"
        )
    channels = {transformer.in_channels, transformer.out_channels or transformer.in_channels}
    if channels != {vae.latent_channels}:
        raise ModelError(
            f"{checkpoint.model} has a transformer of {transformer.in_channels} channels and a vae "
            f"of {vae.latent_channels}: they are not of the same model"
        )
    return ModelSpec(
        num_heads=transformer.num_attention_heads,
        head_size=transformer.attention_head_dim,
        size_multiple=vae.spatial_compression_ratio * transformer.patch_size,
        frames_multiple=vae.temporal_compression_ratio * transformer.patch_size_t,
        autoencoder=AutoencoderSpec(
            latent_channels=vae.latent_channels,
            spatial_ratio=vae.spatial_compression_ratio,
            temporal_ratio=vae.temporal_compression_ratio,
            tile_size=TILE_SIZE,
            tile_stride=TILE_STRIDE,
        ),
        defaults=defaults_of(checkpoint.model, checkpoint.folder),
        flow_shift=scheduler.shift,
    )


def _read(
    kind: type[ConfigT], checkpoint: Checkpoint, component: str, name: str = "config.json"
) -> ConfigT:
    content = checkpoint.config(component, name)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ModelError(
            f"{checkpoint.folder / component / name} cannot be used: {one_line(error)}"
        ) from error
