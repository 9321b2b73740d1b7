"""The fields of HunyuanVideo's configuration files that matter here; defaults: diffusers'."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

Count = Annotated[int, Field(strict=True, ge=1)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class Component(BaseModel):
    """What every config.json may have. Fields that must be null or false are switches that are not
    supported."""

    quantization_config: None = None


class TransformerConfig(Component):
    """HunyuanVideoTransformer3DModel's."""

    in_channels: Count = 16
    out_channels: Count | None = 16
    num_attention_heads: Count = 24
    attention_head_dim: Count = 128
    num_layers: Annotated[int, Field(strict=True, ge=0)] = 20
    num_single_layers: Annotated[int, Field(strict=True, ge=0)] = 40
    num_refiner_layers: Annotated[int, Field(strict=True, ge=0)] = 2
    mlp_ratio: Positive = 4.0
    patch_size: Count = 2
    patch_size_t: Count = 1
    qk_norm: str | None = "rms_norm"
    guidance_embeds: bool = True
    text_embed_dim: Count = 4096
    pooled_projection_dim: Count = 768
    rope_theta: Positive = 256.0
    rope_axes_dim: tuple[Count, Count, Count] = (16, 56, 56)
    image_condition_type: Literal["token_replace", "latent_concat"] | None = None

    @model_validator(mode="after")
    def _rope_fills_a_head(self) -> TransformerConfig:
        if sum(self.rope_axes_dim) != self.attention_head_dim or any(
            size % 2 for size in self.rope_axes_dim
        ):
            raise ValueError("rope_axes_dim must be even numbers that add up to attention_head_dim")
        return self

    @model_validator(mode="after")
    def _first_frame_has_tokens(self) -> TransformerConfig:
        if self.image_condition_type == "token_replace" and self.patch_size_t != 1:
            raise ValueError("token_replace needs patch_size_t=1: its first frame has own tokens")
        return self

    @property
    def latent_channels(self) -> int:
        """Channels of the latents; latent_concat takes in the picture's and one more besides."""
        if self.image_condition_type == "latent_concat":
            return (self.in_channels - 1) // 2
        return self.in_channels

    @property
    def width(self) -> int:
        """Values of one token in the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_width(self) -> int:
        """Values between the two layers of a feed-forward."""
        return int(self.width * self.mlp_ratio)

    @property
    def values_in(self) -> int:
        """Values of one token that are embedded."""
        return self.in_channels * self.patch_size_t * self.patch_size**2

    @property
    def token_values(self) -> int:
        """Values of one token as the denoising loop holds it."""
        return self.latent_channels * self.patch_size_t * self.patch_size**2


class VaeConfig(Component):
    """AutoencoderKLHunyuanVideo's."""

    in_channels: Count = 3
    out_channels: Count = 3
    latent_channels: Count = 16
    block_out_channels: tuple[Count, ...] = (128, 256, 512, 512)
    layers_per_block: Count = 2
    mid_block_add_attention: bool = True
    spatial_compression_ratio: Count = 8
    temporal_compression_ratio: Count = 4
    scaling_factor: Positive = 0.476986


class LlamaConfig(Component):
    """LlamaModel's; defaults: transformers'."""

    vocab_size: Count = 32000
    hidden_size: Count = 4096
    intermediate_size: Count = 11008
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None


class ClipVisionConfig(BaseModel):
    """CLIPVisionModel's; defaults: transformers'."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Count = 12
    image_size: Count = 224
    patch_size: Count = 32


class LlavaConfig(Component):
    """LlavaForConditionalGeneration's."""

    text_config: LlamaConfig = LlamaConfig()
    vision_config: ClipVisionConfig = ClipVisionConfig()
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    tied: bool = Field(default=False, alias="tie_word_embeddings")

    @property
    def num_patches(self) -> int:
        """Tokens that a picture has."""
        patches: int = (self.vision_config.image_size // self.vision_config.patch_size) ** 2
        return patches + (self.vision_feature_select_strategy == "full")


class ClipTextConfig(Component):
    """CLIPTextModel's; defaults: transformers'."""

    vocab_size: Count = 49408
    hidden_size: Count = 512
    intermediate_size: Count = 2048
    num_hidden_layers: Count = 12
    max_position_embeddings: Count = 77


class SchedulerConfig(BaseModel):
    """FlowMatchEulerDiscreteScheduler's."""

    num_train_timesteps: Count = 1000
    shift: Annotated[float, Field(strict=True, ge=0.01, le=1000, allow_inf_nan=False)] = 1.0
    shift_terminal: None = None
    stochastic_sampling: Literal[False] | None = False
    use_dynamic_shifting: Literal[False] | None = False
    invert_sigmas: Literal[False] | None = False
    use_beta_sigmas: Literal[False] | None = False
