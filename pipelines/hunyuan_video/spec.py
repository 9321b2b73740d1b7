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
    LlavaConfig,
    SchedulerConfig,
    TransformerConfig,
    VaeConfig,
)
from longtake.pipelines.hunyuan_video.costs import HunyuanVideoCosts
from longtake.pipelines.spec import AutoencoderSpec, ImageSpec, ModelSpec

CLASSES = {
    "transformer": "HunyuanVideoTransformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo",
    "text_encoder": "LlamaModel",
    "text_encoder_2": "CLIPTextModel",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
_IMAGE_CLASSES = {**CLASSES, "text_encoder": "LlavaForConditionalGeneration"}

IMAGE_STRIDES = {"token_replace": 4, "latent_concat": 2}
"""Of the picture's tokens, one in so many stands before the prompt's."""

HEADER_TOKENS = 4
"""From the end of the prompt to the end of the answer's header: dropped, as diffusers does."""

NEGATIVE_IMAGE_STRIDE = 2
"""Beside a negative prompt."""

_CONCAT_DROPS_FRAMES = 4
"""With latent_concat the first frames are not the picture's, and diffusers drops them."""

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
    _check_files(checkpoint, CLASSES, weights)
    transformer = _read(TransformerConfig, checkpoint, "transformer")
    if transformer.image_condition_type is not None:
        raise ModelError(
            f"{checkpoint.model} is conditioned on an image (image_condition_type="
            f"{transformer.image_condition_type!r}), and its model_index.json names the pipeline "
            "of text-to-video: it must name HunyuanVideoImageToVideoPipeline"
        )
    return _spec(checkpoint, transformer, _read(LlamaConfig, checkpoint, "text_encoder"))


def inspect_image_to_video(checkpoint: Checkpoint, *, weights: bool = True) -> ModelSpec:
    """The same of a HunyuanVideo-I2V, with either way of taking a picture."""
    _check_files(checkpoint, _IMAGE_CLASSES, weights)
    checkpoint.config("image_processor", "preprocessor_config.json")
    transformer = _read(TransformerConfig, checkpoint, "transformer")
    conditioning = transformer.image_condition_type
    if conditioning is None:
        raise ModelError(
            f"{checkpoint.model} has a transformer of text-to-video (no image_condition_type), and "
            "its model_index.json names the pipeline of image-to-video: it must name "
            "HunyuanVideoPipeline"
        )
    llava = _read(LlavaConfig, checkpoint, "text_encoder")
    image = ImageSpec(
        num_tokens=-(-llava.num_patches // IMAGE_STRIDES[conditioning]) - HEADER_TOKENS,
        dropped_frames=_CONCAT_DROPS_FRAMES if conditioning == "latent_concat" else 0,
    )
    return _spec(checkpoint, transformer, llava, image)


def _check_files(checkpoint: Checkpoint, classes: dict[str, str], weights: bool) -> None:
    for component, expected in classes.items():
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


def _spec(
    checkpoint: Checkpoint,
    transformer: TransformerConfig,
    text_encoder: LlamaConfig | LlavaConfig,
    image: ImageSpec | None = None,
) -> ModelSpec:
    clip = _read(ClipTextConfig, checkpoint, "text_encoder_2")
    vae = _read(VaeConfig, checkpoint, "vae")
    scheduler = _read(SchedulerConfig, checkpoint, "scheduler", "scheduler_config.json")
    channels = {transformer.latent_channels, transformer.out_channels or transformer.in_channels}
    if channels != {vae.latent_channels}:
        raise ModelError(
            f"{checkpoint.model} has a transformer of {transformer.in_channels} channels and a vae "
            f"of {vae.latent_channels}: they are not of the same model"
        )
    defaults = defaults_of(checkpoint.model, checkpoint.folder)
    multiple = vae.spatial_compression_ratio * transformer.patch_size
    for height, width in (size for sizes in defaults.sizes.values() for size in sizes):
        if height % multiple or width % multiple:
            raise ModelError(
                f"{checkpoint.model} names a size of {height}x{width} in its longtake.yaml: "
                f"height and width must be multiples of {multiple}"
            )
    return ModelSpec(
        num_heads=transformer.num_attention_heads,
        head_size=transformer.attention_head_dim,
        size_multiple=multiple,
        frames_multiple=vae.temporal_compression_ratio * transformer.patch_size_t,
        autoencoder=AutoencoderSpec(
            latent_channels=vae.latent_channels,
            spatial_ratio=vae.spatial_compression_ratio,
            temporal_ratio=vae.temporal_compression_ratio,
            tile_size=TILE_SIZE,
            tile_stride=TILE_STRIDE,
        ),
        defaults=defaults,
        flow_shift=scheduler.shift,
        patch=(transformer.patch_size_t, transformer.patch_size, transformer.patch_size),
        costs=HunyuanVideoCosts(transformer, vae, text_encoder, clip),
        image=image,
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
