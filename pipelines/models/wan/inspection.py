"""Inspection of Wan checkpoints without importing diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longtake.configs.models import defaults_of
from longtake.errors import ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files.model_files import check_tensors, printable
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.codec.tensors import vae_tensors
from longtake.pipelines.models.wan.codec.tiling import TILE_SIZE, TILE_STRIDE
from longtake.pipelines.models.wan.configs import (
    SCHEDULERS,
    EulerConfig,
    TransformerConfig,
    UniPCConfig,
)
from longtake.pipelines.models.wan.costs import TEXT_TOKENS, WanCosts
from longtake.pipelines.models.wan.defaults import WanDefaults
from longtake.pipelines.models.wan.few_step import few_step_presets
from longtake.pipelines.models.wan.options import Sampler, WanExpertsOptions, WanOptions
from longtake.pipelines.models.wan.spec import EXPERTS, WanSpec
from longtake.pipelines.models.wan.tensors import UNUSED, transformer_tensors
from longtake.pipelines.spec import AutoencoderSpec, Presence
from longtake.pipelines.text_encoders.configs import (
    ClipVisionConfig,
    ImageProcessorConfig,
    Umt5Config,
)
from longtake.pipelines.text_encoders.tensor_names import clip_vision, umt5_encoder
from longtake.pipelines.text_encoders.tensors import clip_vision_tensors, umt5_tensors

IMAGE_TO_VIDEO_CLASS = "WanImageToVideoPipeline"

_CLASSES: Mapping[str, tuple[str, ...]] = {
    "transformer": ("WanTransformer3DModel",),
    "transformer_2": ("WanTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel",),
    "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "scheduler": tuple(SCHEDULERS),
}
"""Classes that a component may have."""

_5B_DEFAULTS = WanDefaults(height=704, width=1280, num_frames=121, fps=24.0)


@dataclass(frozen=True)
class _Index:
    """What ``model_index.json`` says.

    Attributes:
        takes_picture: Whether the pipeline class is that of image to video.
        boundary_ratio: Timestep at which the experts change, over the number of timesteps; None for
            one transformer.
        expand_timesteps: Whether a given first frame has a timestep of its own.
    """

    takes_picture: bool
    boundary_ratio: float | None
    expand_timesteps: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Index:
        """Read and check the plain values.

        Raises:
            ModelError: A value is none that diffusers writes, or the experts do not fit it.
        """
        index = checkpoint.index
        ratio, expand = index.get("boundary_ratio"), index.get("expand_timesteps") or False
        if not (ratio is None or (isinstance(ratio, float) and 0 < ratio < 1)):
            raise _wrong_value(checkpoint, "boundary_ratio", ratio, "null, or between 0 and 1")
        if not isinstance(expand, bool):
            raise _wrong_value(checkpoint, "expand_timesteps", expand, "true or false")
        if expand and ratio is not None:
            raise ModelError(
                f"{checkpoint.model} has boundary_ratio={ratio} with expand_timesteps, which no "
                "released Wan has: longtake renders with one of them"
            )
        return cls(checkpoint.pipeline_class == IMAGE_TO_VIDEO_CLASS, ratio, expand)


def inspect(
    checkpoint: Checkpoint, *, weights: bool = True, autoencoder_only: bool = False
) -> WanSpec:
    """Check that a checkpoint is a complete Wan, and return its specification.

    Args:
        checkpoint: The model's files.
        weights: Whether to require weights and vocabularies as well as configuration files. For a
            model on the hub, they are downloaded.
        autoencoder_only: Whether to require only the autoencoder's weights.

    Raises:
        ModelError: A file is missing, damaged, unsupported, or belongs to another model.
    """
    index = _Index.of(checkpoint)
    _check_experts(checkpoint, index)
    transformer = _transformer(checkpoint, index)
    components = _components(index, transformer)
    for component in components:
        _check_class(checkpoint, component)
    required = (["vae"] if autoencoder_only else components) if weights else []
    for component in required:
        checkpoint.weights_name(component)
    spec = _spec(checkpoint, transformer, index)
    _check_files(checkpoint, spec.costs, required)
    return spec


def _components(index: _Index, transformer: TransformerConfig) -> list[str]:
    """Components with weights that the model needs."""
    experts = EXPERTS[: 1 if index.boundary_ratio is None else 2]
    image_encoder = [] if transformer.image_dim is None else ["image_encoder"]
    return [*experts, "vae", "text_encoder", *image_encoder]


def _check_experts(checkpoint: Checkpoint, index: _Index) -> None:
    """Check that there are as many transformers as ``boundary_ratio`` says."""
    ratio = index.boundary_ratio
    if ratio is not None:
        for component in EXPERTS:
            if not checkpoint.has_component(component):
                raise ModelError(
                    f"{checkpoint.model} has boundary_ratio={ratio}, so two experts share the "
                    f"steps, and its model_index.json names no {component}: download or save it "
                    "again"
                )
    elif checkpoint.has_component("transformer_2"):
        raise ModelError(
            f"{checkpoint.model} has a transformer_2 and no boundary_ratio, which says at which "
            "timestep it takes over: set boundary_ratio in model_index.json (0.875 in Wan 2.2 "
            "text-to-video, 0.9 in image-to-video), or transformer_2 to [null, null]"
        )


def _check_class(checkpoint: Checkpoint, component: str) -> None:
    found, expected = checkpoint.component_class(component), _CLASSES[component]
    if found not in expected:
        raise ModelError(
            f"{checkpoint.model} has a {component} of class {found}: Wan needs "
            f"{' or '.join(expected)}"
        )


def _transformer(checkpoint: Checkpoint, index: _Index) -> TransformerConfig:
    """The configuration of the transformer, or of both experts, checked against the index."""
    _check_class(checkpoint, "transformer")
    config = checkpoint.parse_config(TransformerConfig, "transformer")
    if index.boundary_ratio is not None:
        _check_class(checkpoint, "transformer_2")
        if checkpoint.parse_config(TransformerConfig, "transformer_2") != config:
            raise ModelError(
                f"{checkpoint.model} has a transformer and a transformer_2 of different "
                "configurations: the experts of a Wan are of the same size"
            )
    beside = config.in_channels - config.latent_channels
    expected = index.takes_picture and not index.expand_timesteps
    if (beside > 0) != expected:
        named = checkpoint.pipeline_class
        other = "WanPipeline" if expected else IMAGE_TO_VIDEO_CLASS
        kind = "image-to-video" if beside > 0 else "text-to-video"
        raise ModelError(
            f"{checkpoint.model} has a transformer of {kind} (in_channels={config.in_channels}, "
            f"out_channels={config.latent_channels}), and its model_index.json names {named}"
            f"{' with expand_timesteps' if index.expand_timesteps else ''}: it must name {other}"
        )
    if index.expand_timesteps and config.patch_size[0] != 1:
        raise ModelError(
            f"{checkpoint.model} has expand_timesteps with patch_size={list(config.patch_size)}: "
            "the first frame must have its own tokens, so the patch must be 1 frame long"
        )
    if config.image_dim is not None and not expected:
        raise ModelError(
            f"{checkpoint.model} has a transformer with image keys (image_dim={config.image_dim}), "
            f"and no pictures for them: its model_index.json must name {IMAGE_TO_VIDEO_CLASS}"
        )
    return config


def _spec(checkpoint: Checkpoint, transformer: TransformerConfig, index: _Index) -> WanSpec:
    costs = _costs(checkpoint, transformer, index)
    vae, patch = costs.vae, transformer.patch_size
    _check_channels(checkpoint, transformer, vae)
    sampler, scheduler = _scheduler(checkpoint)
    ratio = index.boundary_ratio
    multiple = vae.scale_factor_spatial * patch[1]
    return WanSpec(
        num_heads=transformer.num_attention_heads,
        head_size=transformer.attention_head_dim,
        size_multiple=multiple,
        frames_multiple=vae.scale_factor_temporal * patch[0],
        autoencoder=AutoencoderSpec(
            latent_channels=vae.z_dim,
            spatial_ratio=vae.scale_factor_spatial,
            temporal_ratio=vae.scale_factor_temporal,
            tile_size=TILE_SIZE,
            tile_stride=TILE_STRIDE,
        ),
        defaults=_defaults(checkpoint, costs, index, multiple),
        flow_shift=scheduler.shift,
        patch=patch,
        costs=costs,
        options=WanOptions if ratio is None else WanExpertsOptions,
        pictures=_pictures(transformer, index),
        few_step_presets=few_step_presets(
            transformer.num_attention_heads,
            takes_picture=index.takes_picture,
            has_experts=ratio is not None,
        ),
        scheduler=scheduler,
        sampler=sampler,
        boundary=None if ratio is None else ratio * scheduler.num_train_timesteps,
        expand_timesteps=index.expand_timesteps,
    )


def _pictures(transformer: TransformerConfig, index: _Index) -> dict[str, Presence]:
    """The pictures that a kind of model takes.

    A model with image keys takes as many as its keys are for: one, or the first and the last.
    """
    if index.expand_timesteps:
        return {"image": "optional"}
    if not index.takes_picture:
        return {}
    if transformer.pos_embed_seq_len is not None:
        return {"image": "required", "last_image": "required"}
    if transformer.image_dim is not None:
        return {"image": "required"}
    return {"image": "required", "last_image": "optional"}


def _defaults(checkpoint: Checkpoint, costs: WanCosts, index: _Index, multiple: int) -> WanDefaults:
    fallback = _5B_DEFAULTS if index.expand_timesteps else WanDefaults()
    defaults = defaults_of(checkpoint.defaults_name, checkpoint.folder, fallback)
    for height, width in (size for sizes in defaults.sizes.values() for size in sizes):
        if height % multiple or width % multiple:
            raise ModelError(
                f"{checkpoint.model} lists size {height}x{width} in its longtake.yaml: "
                f"height and width must be multiples of {multiple}"
            )
    if costs.image_encoder is not None and defaults.max_sequence_length != TEXT_TOKENS:
        raise ModelError(
            f"{checkpoint.model} has max_sequence_length={defaults.max_sequence_length} in its "
            f"longtake.yaml: a model with image keys needs {TEXT_TOKENS}"
        )
    return defaults


def _scheduler(checkpoint: Checkpoint) -> tuple[Sampler, UniPCConfig | EulerConfig]:
    found = checkpoint.component_class("scheduler")
    if found not in SCHEDULERS:
        raise ModelError(
            f"{checkpoint.model} has an unknown scheduler, {found}: Wan runs with "
            f"{' or '.join(SCHEDULERS)}"
        )
    sampler, kind = SCHEDULERS[found]
    return sampler, checkpoint.parse_config(kind, "scheduler", "scheduler_config.json")


def _costs(checkpoint: Checkpoint, transformer: TransformerConfig, index: _Index) -> WanCosts:
    text = checkpoint.parse_config(Umt5Config, "text_encoder")
    if text.d_model != transformer.text_dim:
        raise ModelError(
            f"{checkpoint.model} has a text_encoder of {text.d_model} values per token and a "
            f"transformer for {transformer.text_dim}: they are not of the same model"
        )
    return WanCosts(
        transformer=transformer,
        vae=checkpoint.parse_config(VaeConfig, "vae"),
        text_encoder=text,
        image_encoder=_image_encoder(checkpoint, transformer),
        num_experts=1 if index.boundary_ratio is None else 2,
    )


def _image_encoder(
    checkpoint: Checkpoint, transformer: TransformerConfig
) -> ClipVisionConfig | None:
    """The configuration of the image encoder; None for a model without image keys."""
    if transformer.image_dim is None:
        return None
    _check_class(checkpoint, "image_encoder")
    checkpoint.parse_config(ImageProcessorConfig, "image_processor", "preprocessor_config.json")
    encoder = checkpoint.parse_config(ClipVisionConfig, "image_encoder")
    positions, fits = transformer.pos_embed_seq_len, encoder.hidden_size == transformer.image_dim
    if not fits or positions not in (None, 2 * encoder.num_tokens):
        raise ModelError(
            f"{checkpoint.model} has an image_encoder of {encoder.num_tokens} tokens of "
            f"{encoder.hidden_size} values, and a transformer with image_dim="
            f"{transformer.image_dim} and pos_embed_seq_len={positions}: they are not of the same "
            "model"
        )
    return encoder


def _check_channels(checkpoint: Checkpoint, transformer: TransformerConfig, vae: VaeConfig) -> None:
    """Check the transformer's channels against the autoencoder's.

    Beside the noise, an image-to-video model takes a mask of each frame and latents of the clip.
    """
    latents, channels = vae.z_dim, transformer.in_channels
    allowed = {latents, 2 * latents + vae.scale_factor_temporal}
    if transformer.latent_channels != latents or channels not in allowed:
        raise ModelError(
            f"{checkpoint.model} has a transformer of {channels} channels, of which it gives "
            f"{transformer.latent_channels}, and a vae of {latents}: they are not of the same model"
        )


def _check_files(checkpoint: Checkpoint, costs: WanCosts, required: Sequence[str]) -> None:
    """Check that weights and the vocabulary are complete and match the configurations."""
    if not required:
        return
    tokenizers = ("tokenizer",) if "text_encoder" in required else ()
    processors = ("image_processor",) if "image_encoder" in required else ()
    checkpoint.fetch(required, (*tokenizers, *processors))
    for component in required:
        tensors = _used_tensors(checkpoint, component)
        expected = dict(_expected_tensors(costs, component))
        check_tensors(tensors, expected, checkpoint.label(component))
    for component in tokenizers:
        checkpoint.check_vocabulary(component)


def _wrong_value(checkpoint: Checkpoint, name: str, value: Any, expected: str) -> ModelError:
    shown = printable(value)
    return ModelError(
        f"{checkpoint.folder / 'model_index.json'} has {name}={shown}: it must be {expected}"
    )


def _used_tensors(checkpoint: Checkpoint, component: str) -> Mapping[str, Tensor]:
    """A component's tensors that are loaded, by their current names."""
    tensors = checkpoint.tensors(component)
    if component == "text_encoder":
        return umt5_encoder(tensors)
    if component == "image_encoder":
        return clip_vision(tensors)
    return {name: each for name, each in tensors.items() if not UNUSED.fullmatch(name)}


def _expected_tensors(costs: WanCosts, component: str) -> NamedShapes:
    """Names and shapes of the tensors that a component's configuration implies."""
    if component == "text_encoder":
        return umt5_tensors(costs.text_encoder)
    if component == "image_encoder":
        assert costs.image_encoder is not None
        return clip_vision_tensors(costs.image_encoder)
    return vae_tensors(costs.vae) if component == "vae" else transformer_tensors(costs.transformer)
