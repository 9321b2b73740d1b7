"""What HunyuanVideo's configuration files say, read without importing diffusers."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from longtake.configs.models import defaults_of
from longtake.errors import ModelError, one_line
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.hunyuan_video.configs import (
    ClipTextConfig,
    LlamaConfig,
    SchedulerConfig,
    TransformerConfig,
    VaeConfig,
)
from longtake.pipelines.hunyuan_video.costs import HunyuanVideoCosts
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

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def inspect(checkpoint: Checkpoint, *, weights: bool = True) -> ModelSpec:
    """Check that a folder is a whole HunyuanVideo, and say what requests it can serve.

    Args:
        weights: whether it must have weights and vocabularies, too, not configuration files alone.

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
    if weights:
        for component in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            checkpoint.weights(component)
        for component in ("tokenizer", "tokenizer_2"):
            checkpoint.config(component, "tokenizer_config.json")
    llama = _read(LlamaConfig, checkpoint, "text_encoder")
    clip = _read(ClipTextConfig, checkpoint, "text_encoder_2")
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
        patch=(transformer.patch_size_t, transformer.patch_size, transformer.patch_size),
        costs=HunyuanVideoCosts(transformer, vae, llama, clip),
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
