"""Validated fields of text encoders' configuration files, with transformers' defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from longtake.pipelines.loading.component_config import Component, Count, Flag, NumLayers, Pixels


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

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a picture: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


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


class Umt5Config(Component):
    """Configuration of UMT5EncoderModel, with transformers' defaults."""

    vocab_size: Count = 250112
    d_model: Count = 512
    d_kv: Count = 64
    d_ff: Count = 1024
    num_layers: Annotated[NumLayers, Field(ge=1)] = 8
    num_heads: Count = 6
    relative_attention_num_buckets: Annotated[Count, Field(ge=4)] = 32
    relative_attention_max_distance: Count = 128
    feed_forward_proj: Literal["gated-gelu", "relu"] = "gated-gelu"
    model_type: Literal["umt5"] = "umt5"

    @model_validator(mode="after")
    def _check_distances(self) -> Umt5Config:
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 4:
            raise ValueError(
                "relative_attention_max_distance must be larger than a quarter of "
                "relative_attention_num_buckets"
            )
        return self

    @property
    def is_gated(self) -> bool:
        """Whether two projections are multiplied at the start of a feed-forward layer."""
        return self.feed_forward_proj.startswith("gated-")


class ImageProcessorConfig(BaseModel):
    """Configuration of CLIPImageProcessor."""

    size: Pixels | dict[str, Pixels] = {"shortest_edge": 224}
    crop_size: Pixels | dict[str, Pixels] = {"height": 224, "width": 224}
