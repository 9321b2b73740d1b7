"""Validated fields of HunyuanVideo's configuration files, with diffusers' defaults."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from longtake.pipelines.loading.component_config import Component, Count, Flag, NumLayers, Positive


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
