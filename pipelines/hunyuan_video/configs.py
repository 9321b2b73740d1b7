"""Validated fields of HunyuanVideo's configuration files, with diffusers' defaults."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

Count = Annotated[int, Field(strict=True, ge=1, le=2**20)]
NumLayers = Annotated[int, Field(strict=True, ge=0, le=1000)]
Positive = Annotated[float, Field(strict=True, gt=0, le=1e9, allow_inf_nan=False)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=4096)]
Flag = Annotated[bool, Field(strict=True)]


class Component(BaseModel):
    """Fields common to every config.json.

    Fields whose only valid value is null or false are unsupported features.
    """

    quantization_config: None = None


class TransformerConfig(Component):
    """Configuration of HunyuanVideoTransformer3DModel."""

    in_channels: Count = 16
    out_channels: Count | None = 16
    num_attention_heads: Count = 24
    attention_head_dim: Count = 128
    num_layers: NumLayers = 20
    num_single_layers: NumLayers = 40
    num_refiner_layers: NumLayers = 2
    mlp_ratio: Annotated[Positive, Field(le=64)] = 4.0
    patch_size: Count = 2
    patch_size_t: Count = 1
    qk_norm: Literal["rms_norm"] | None = "rms_norm"
    guidance_embeds: Flag = True
    text_embed_dim: Count = 4096
    pooled_projection_dim: Count = 768
    rope_theta: Positive = 256.0
    rope_axes_dim: tuple[Count, Count, Count] = (16, 56, 56)
    image_condition_type: Literal["token_replace", "latent_concat"] | None = None

    @model_validator(mode="after")
    def _check_rope_axes(self) -> TransformerConfig:
        if sum(self.rope_axes_dim) != self.attention_head_dim or any(
            size % 2 for size in self.rope_axes_dim
        ):
            raise ValueError("rope_axes_dim must be even numbers that add up to attention_head_dim")
        return self

    @model_validator(mode="after")
    def _check_first_frame(self) -> TransformerConfig:
        if self.image_condition_type == "token_replace" and self.patch_size_t != 1:
            raise ValueError(
                "token_replace needs patch_size_t=1: the first frame must have its own tokens"
            )
        return self

    @property
    def latent_channels(self) -> int:
        """Latent channels. With latent_concat, in_channels also counts the picture's latents and a
        one-channel mask."""
        if self.image_condition_type == "latent_concat":
            return (self.in_channels - 1) // 2
        return self.in_channels

    @property
    def width(self) -> int:
        """Model width: values per token in the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden width of a feed-forward."""
        return int(self.width * self.mlp_ratio)

    @property
    def values_in(self) -> int:
        """Values per token at the input of the patch embedding."""
        return self.in_channels * self.patch_size_t * self.patch_size**2

    @property
    def token_values(self) -> int:
        """Values per token of the latents in the denoising loop."""
        return self.latent_channels * self.patch_size_t * self.patch_size**2


class VaeConfig(Component):
    """Configuration of AutoencoderKLHunyuanVideo."""

    in_channels: Count = 3
    out_channels: Count = 3
    latent_channels: Count = 16
    block_out_channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=16)] = (
        128,
        256,
        512,
        512,
    )
    down_block_types: tuple[Literal["HunyuanVideoDownBlock3D"], ...] = (
        "HunyuanVideoDownBlock3D",
    ) * 4
    up_block_types: tuple[Literal["HunyuanVideoUpBlock3D"], ...] = ("HunyuanVideoUpBlock3D",) * 4
    norm_num_groups: Count = 32
    layers_per_block: Annotated[NumLayers, Field(ge=1)] = 2
    mid_block_add_attention: Flag = True
    spatial_compression_ratio: Count = 8
    temporal_compression_ratio: Literal[4] = 4
    scaling_factor: Positive = 0.476986

    @model_validator(mode="after")
    def _check_blocks(self) -> VaeConfig:
        count = len(self.block_out_channels)
        if {len(self.down_block_types), len(self.up_block_types)} != {count}:
            raise ValueError(
                "down_block_types and up_block_types must be as long as block_out_channels"
            )
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError("block_out_channels must be multiples of norm_num_groups")
        return self

    def scale_factors(self, index: int) -> tuple[int, int]:
        """A block's temporal and spatial scale factors: upsampling in the decoder, downsampling in
        the encoder.

        Args:
            index: Index of the block, in execution order.
        """
        blocks = len(self.block_out_channels)
        in_space = index < int(math.log2(self.spatial_compression_ratio))
        times = int(math.log2(self.temporal_compression_ratio))
        in_time = blocks - 1 - times <= index < blocks - 1
        return (2 if in_time else 1), (2 if in_space else 1)


class Encoder(Component):
    """Fields common to all text and vision encoders."""

    hidden_size: Count
    num_attention_heads: Count

    @model_validator(mode="after")
    def _check_heads(self) -> Encoder:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        return self


class LlamaConfig(Encoder):
    """Configuration of LlamaModel, with transformers' defaults."""

    vocab_size: Count = 32000
    hidden_size: Count = 4096
    intermediate_size: Count = 11008
    num_hidden_layers: Annotated[NumLayers, Field(ge=1)] = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    attention_bias: Flag = False
    mlp_bias: Flag = False
    model_type: Literal["llama"] = "llama"

    @model_validator(mode="after")
    def _check_kv_heads(self) -> LlamaConfig:
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self


class ClipVisionConfig(Encoder):
    """Configuration of CLIPVisionModel, with transformers' defaults."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Annotated[NumLayers, Field(ge=1)] = 12
    num_attention_heads: Count = 12
    num_channels: Literal[3] = 3
    image_size: Pixels = 224
    patch_size: Pixels = 32
    model_type: Literal["clip_vision_model"] = "clip_vision_model"


class LlavaConfig(Component):
    """Configuration of LlavaForConditionalGeneration."""

    text_config: LlamaConfig = LlamaConfig()
    vision_config: ClipVisionConfig = ClipVisionConfig()
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    vision_feature_layer: Annotated[int, Field(strict=True, ge=-1000, le=1000)] = -2
    multimodal_projector_bias: Flag = True
    tied: Flag = Field(default=False, alias="tie_word_embeddings")

    @property
    def num_patches(self) -> int:
        """Number of tokens of a picture."""
        patches: int = (self.vision_config.image_size // self.vision_config.patch_size) ** 2
        return patches + (self.vision_feature_select_strategy == "full")


class ClipTextConfig(Encoder):
    """Configuration of CLIPTextModel, with transformers' defaults."""

    vocab_size: Count = 49408
    hidden_size: Count = 512
    intermediate_size: Count = 2048
    num_hidden_layers: Annotated[NumLayers, Field(ge=1)] = 12
    num_attention_heads: Count = 8
    max_position_embeddings: Count = 77


class ImageProcessorConfig(BaseModel):
    """Configuration of CLIPImageProcessor."""

    size: Pixels | dict[str, Pixels] = {"shortest_edge": 224}
    crop_size: Pixels | dict[str, Pixels] = {"height": 224, "width": 224}


class SchedulerConfig(BaseModel):
    """Configuration of FlowMatchEulerDiscreteScheduler."""

    num_train_timesteps: Count = 1000
    shift: Annotated[float, Field(strict=True, ge=0.01, le=1000, allow_inf_nan=False)] = 1.0
    shift_terminal: None = None
    stochastic_sampling: Literal[False] | None = False
    use_dynamic_shifting: Literal[False] | None = False
    invert_sigmas: Literal[False] | None = False
    use_beta_sigmas: Literal[False] | None = False
