"""Inspection of HunyuanVideo checkpoints without importing diffusers."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longtake.configs.models import defaults_of
from longtake.configs.request import Rendering, ResolvedRequest
from longtake.errors import ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.component_config import SchedulerConfig
from longtake.pipelines.loading.files.model_files import check_tensors
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.hunyuan_video.configs import TransformerConfig, VaeConfig
from longtake.pipelines.models.hunyuan_video.costs import HunyuanVideoCosts
from longtake.pipelines.models.hunyuan_video.defaults import HunyuanVideoDefaults
from longtake.pipelines.models.hunyuan_video.few_step import few_step_presets
from longtake.pipelines.models.hunyuan_video.options import (
    HunyuanVideoOptions,
    TextToVideoOptions,
)
from longtake.pipelines.models.hunyuan_video.tensors import transformer_tensors, vae_tensors
from longtake.pipelines.spec import AutoencoderSpec, ModelSpec
from longtake.pipelines.text_encoders.configs import (
    ClipTextConfig,
    ImageProcessorConfig,
    LlamaConfig,
    LlavaConfig,
)
from longtake.pipelines.text_encoders.tensors import clip_tensors, llama_tensors, llava_tensors

logger = logging.getLogger(__name__)

IMAGE_TO_VIDEO_CLASS = "HunyuanVideoImageToVideoPipeline"
CLASSES = {
    "transformer": "HunyuanVideoTransformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo",
    "text_encoder": "LlamaModel",
    "text_encoder_2": "CLIPTextModel",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_UNUSED = re.compile(
    r"(lm_head|text_projection|vision_model|visual_projection)\..*|logit_scale"
    r"|.*(inv_freq|position_ids)"
)
"""Tensors of some weight files that the text encoders do not use."""

_RENAMED_PREFIXES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "language_model."),
    ("vision_tower.vision_model.", "vision_tower."),
)
_IMAGE_CLASSES = {**CLASSES, "text_encoder": "LlavaForConditionalGeneration"}

IMAGE_STRIDES = {"token_replace": 4, "latent_concat": 2}
"""Stride at which the picture's tokens are sampled, by image_condition_type."""

HEADER_TOKENS = 4
"""Tokens from the end of the prompt to the end of the answer's header; dropped, as in diffusers."""

NEGATIVE_IMAGE_STRIDE = 2
"""Stride for the black picture encoded with a negative prompt."""

_MIN_LAYERS, _CLIP_TOKENS = 2, 77
"""Layers of LLaMA whose states are not used, and tokens of CLIP's prompt, as in diffusers."""

_CONCAT_DROPS_FRAMES = 4
"""Leading frames dropped with latent_concat, as in diffusers: they do not show the picture."""

TILE_SIZE, TILE_STRIDE = (16, 256, 256), (12, 192, 192)
"""Default tiles of diffusers' AutoencoderKLHunyuanVideo: frames, height and width in pixels."""


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoSpec(ModelSpec):
    """Specification of a HunyuanVideo model.

    Attributes:
        image_tokens: Picture tokens before those of the prompt, minus the template tokens dropped
            after the prompt; 0 for text to video.
    """

    defaults: HunyuanVideoDefaults
    costs: HunyuanVideoCosts
    options: type[TextToVideoOptions] = TextToVideoOptions
    scale_field: str | None = "true_cfg_scale"
    image_tokens: int = 0

    def resolve_fields(self, request: Rendering) -> dict[str, Any]:
        """As of every model, but for the shift, which depends on ``i2v_mode``."""
        fields = super().resolve_fields(request)
        if request.guidance_scale is not None and not self.costs.transformer.guidance_embeds:
            logger.warning(
                "guidance_scale=%g has no effect: the transformer embeds no guidance; "
                "true_cfg_scale above 1 guides it",
                request.guidance_scale,
            )
        if fields.get("i2v_mode") == "dynamic":
            fields["flow_shift"] = request.flow_shift or self.defaults.dynamic_flow_shift
        return fields

    def text_tokens(self, request: ResolvedRequest) -> int:
        """Largest number of prompt and picture tokens."""
        return request.max_sequence_length + self.image_tokens

    def joint_tokens(self, request: ResolvedRequest) -> int:
        """All text tokens."""
        return self.text_tokens(request)


def inspect(
    checkpoint: Checkpoint, *, weights: bool = True, autoencoder_only: bool = False
) -> HunyuanVideoSpec:
    """Check that a checkpoint is a complete HunyuanVideo, and return its specification.

    Args:
        weights: Whether to require weights and vocabularies as well as configuration files. For a
            model on the hub, they are downloaded.
        autoencoder_only: Whether to require only the autoencoder's weights.

    Raises:
        ModelError: A file is missing, damaged, unsupported, or belongs to another model.
    """
    required = _required_weights(weights, autoencoder_only)
    if checkpoint.pipeline_class == IMAGE_TO_VIDEO_CLASS:
        return _inspect_image_to_video(checkpoint, required)
    _check_index(checkpoint, CLASSES, required)
    transformer = checkpoint.parse_config(TransformerConfig, "transformer")
    if transformer.image_condition_type is not None:
        raise ModelError(
            f"{checkpoint.model} is conditioned on an image (image_condition_type="
            f"{transformer.image_condition_type!r}), and its model_index.json names the pipeline "
            f"of text-to-video: it must name {IMAGE_TO_VIDEO_CLASS}"
        )
    costs = _costs(checkpoint, transformer, checkpoint.parse_config(LlamaConfig, "text_encoder"))
    presets = few_step_presets(transformer.num_attention_heads)
    spec = _spec(checkpoint, costs, few_step_presets=presets)
    _check_files(checkpoint, costs, required)
    return spec


def _inspect_image_to_video(checkpoint: Checkpoint, required: Sequence[str]) -> HunyuanVideoSpec:
    """Inspect a HunyuanVideo-I2V (token_replace or latent_concat); see :func:`inspect`."""
    _check_index(checkpoint, _IMAGE_CLASSES, required)
    checkpoint.parse_config(ImageProcessorConfig, "image_processor", "preprocessor_config.json")
    transformer = checkpoint.parse_config(TransformerConfig, "transformer")
    conditioning = transformer.image_condition_type
    if conditioning is None:
        raise ModelError(
            f"{checkpoint.model} has a transformer of text-to-video (no image_condition_type), and "
            "its model_index.json names the pipeline of image-to-video: it must name "
            "HunyuanVideoPipeline"
        )
    llava = checkpoint.parse_config(LlavaConfig, "text_encoder")
    costs = _costs(checkpoint, transformer, llava)
    spec = _spec(
        checkpoint,
        costs,
        options=HunyuanVideoOptions,
        pictures={"image": "required"},
        image_tokens=-(-llava.num_patches // IMAGE_STRIDES[conditioning]) - HEADER_TOKENS,
        dropped_frames=_CONCAT_DROPS_FRAMES if conditioning == "latent_concat" else 0,
    )
    _check_files(checkpoint, costs, required)
    return spec


def _required_weights(weights: bool, autoencoder_only: bool) -> Sequence[str]:
    """Components whose weights are required."""
    if not weights:
        return ()
    return ("vae",) if autoencoder_only else ("transformer", "vae", *_TEXT_ENCODERS)


def _check_index(checkpoint: Checkpoint, classes: dict[str, str], required: Sequence[str]) -> None:
    for component, expected in classes.items():
        found = checkpoint.component_class(component)
        if found != expected:
            raise ModelError(
                f"{checkpoint.model} has a {component} of class {found}: HunyuanVideo needs "
                f"{expected}"
            )
    for component in required:
        checkpoint.weights_name(component)


def _check_files(checkpoint: Checkpoint, costs: HunyuanVideoCosts, required: Sequence[str]) -> None:
    """Check that weights and vocabularies are complete and match the configurations."""
    if not required:
        return
    encodes = "text_encoder" in required
    tokenizers = ("tokenizer", "tokenizer_2") if encodes else ()
    checkpoint.fetch(required, tokenizers)
    for component in required:
        tensors = checkpoint.tensors(component)
        if component in _TEXT_ENCODERS:
            renamed = {_current_name(name): tensor for name, tensor in tensors.items()}
            tensors = {name: renamed[name] for name in renamed if not _UNUSED.fullmatch(name)}
        expected = dict(_expected_tensors(costs, component))
        check_tensors(tensors, expected, checkpoint.label(component))
    for component in tokenizers:
        checkpoint.check_vocabulary(component)


def _expected_tensors(costs: HunyuanVideoCosts, component: str) -> NamedShapes:
    """Names and shapes of the tensors that a component's configuration implies."""
    if component == "transformer":
        return transformer_tensors(costs.transformer)
    if component == "vae":
        return vae_tensors(costs.vae)
    if component == "text_encoder_2":
        return clip_tensors(costs.clip)
    encoder = costs.text_encoder
    return llava_tensors(encoder) if isinstance(encoder, LlavaConfig) else llama_tensors(encoder)


def _current_name(name: str) -> str:
    """Map a text encoder's tensor name to its name in the latest transformers, which maps older
    names on loading."""
    name = name.removeprefix("model.").removeprefix("text_model.")
    for old, new in _RENAMED_PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _costs(
    checkpoint: Checkpoint, transformer: TransformerConfig, encoder: LlamaConfig | LlavaConfig
) -> HunyuanVideoCosts:
    clip = checkpoint.parse_config(ClipTextConfig, "text_encoder_2")
    llama = encoder.text_config if isinstance(encoder, LlavaConfig) else encoder
    found = (llama.hidden_size, clip.hidden_size)
    expected = (transformer.text_embed_dim, transformer.pooled_projection_dim)
    if found != expected:
        raise ModelError(
            f"{checkpoint.model} has text encoders of {found[0]} and {found[1]} values, and a "
            f"transformer for {expected[0]} and {expected[1]}: they are not of the same model"
        )
    if llama.num_hidden_layers < _MIN_LAYERS or clip.max_position_embeddings < _CLIP_TOKENS:
        raise ModelError(
            f"{checkpoint.model} has a text_encoder of {llama.num_hidden_layers} layers and a "
            f"text_encoder_2 of {clip.max_position_embeddings} positions: HunyuanVideo needs "
            f"{_MIN_LAYERS} and {_CLIP_TOKENS} or more"
        )
    return HunyuanVideoCosts(transformer, checkpoint.parse_config(VaeConfig, "vae"), encoder, clip)


def _spec(
    checkpoint: Checkpoint, costs: HunyuanVideoCosts, **conditioning: Any
) -> HunyuanVideoSpec:
    transformer, vae = costs.transformer, costs.vae
    scheduler = checkpoint.parse_config(SchedulerConfig, "scheduler", "scheduler_config.json")
    channels = {transformer.latent_channels, transformer.out_channels or transformer.in_channels}
    if channels != {vae.latent_channels}:
        raise ModelError(
            f"{checkpoint.model} has a transformer of {transformer.in_channels} channels and a vae "
            f"of {vae.latent_channels}: they are not of the same model"
        )
    defaults = defaults_of(checkpoint.defaults_name, checkpoint.folder, HunyuanVideoDefaults())
    multiple = vae.spatial_compression_ratio * transformer.patch_size
    for height, width in (size for sizes in defaults.sizes.values() for size in sizes):
        if height % multiple or width % multiple:
            raise ModelError(
                f"{checkpoint.model} lists size {height}x{width} in its longtake.yaml: "
                f"height and width must be multiples of {multiple}"
            )
    return HunyuanVideoSpec(
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
        costs=costs,
        **conditioning,
    )
