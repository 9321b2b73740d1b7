"""Names and shapes of the transformer's weight tensors, from its configuration alone.

They are generated lazily, so that memory does not grow with the configured number of layers.
"""

from __future__ import annotations

import re

from longtake.pipelines.loading.tensor_shapes import NamedShapes, linear, norm
from longtake.pipelines.models.wan.configs import TransformerConfig

FLOAT32_WEIGHTS = re.compile(r"(^|\.)(time_embedder|scale_shift_table|norm[123])(\.|$)")
"""Names of the transformer's weights that stay float32 in every dtype, as in diffusers. The tables
of its rotary embedding do too; they are buffers."""

UNUSED = re.compile(r".*\.norm_added_q\..*")
"""Tensors of some weight files that the transformer does not have; diffusers ignores them."""

MODULATIONS = 6
"""Vectors that modulate a block: shift, scale and gate, of self-attention and feed-forward."""


def transformer_tensors(config: TransformerConfig) -> NamedShapes:
    """Tensors of WanTransformer3DModel."""
    width = config.width
    yield "scale_shift_table", (1, 2, width)
    yield "patch_embedding.weight", (width, config.in_channels, *config.patch_size)
    yield "patch_embedding.bias", (width,)
    yield from condition_tensors("condition_embedder.", config)
    for index in range(config.num_layers):
        yield from block_tensors(f"blocks.{index}.", config)
    yield from linear("proj_out", width, config.token_values)


def condition_tensors(start: str, config: TransformerConfig) -> NamedShapes:
    """Tensors of the embedders of timestep, text and image.

    Args:
        start: Prefix of the tensor names, with its trailing dot.
    """
    width = config.width
    yield from linear(f"{start}time_embedder.linear_1", config.freq_dim, width)
    yield from linear(f"{start}time_embedder.linear_2", width, width)
    yield from linear(f"{start}time_proj", width, MODULATIONS * width)
    yield from linear(f"{start}text_embedder.linear_1", config.text_dim, width)
    yield from linear(f"{start}text_embedder.linear_2", width, width)
    if config.image_dim is None:
        return
    image = f"{start}image_embedder."
    if config.pos_embed_seq_len is not None:
        yield f"{image}pos_embed", (1, config.pos_embed_seq_len, config.image_dim)
    yield from norm(f"{image}norm1", config.image_dim)
    yield from linear(f"{image}ff.net.0.proj", config.image_dim, config.image_dim)
    yield from linear(f"{image}ff.net.2", config.image_dim, width)
    yield from norm(f"{image}norm2", width)


def block_tensors(start: str, config: TransformerConfig) -> NamedShapes:
    """Tensors of a block: self-attention, cross attention, feed-forward.

    Args:
        start: Prefix of the tensor names, with its trailing dot.
    """
    width = config.width
    yield f"{start}scale_shift_table", (1, MODULATIONS, width)
    for attention in ("attn1", "attn2"):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from linear(f"{start}{attention}.{name}", width, width)
        yield f"{start}{attention}.norm_q.weight", (width,)
        yield f"{start}{attention}.norm_k.weight", (width,)
    if config.added_kv_proj_dim is not None:
        for name in ("add_k_proj", "add_v_proj"):
            yield from linear(f"{start}attn2.{name}", config.added_kv_proj_dim, width)
        yield f"{start}attn2.norm_added_k.weight", (width,)
    if config.cross_attn_norm:
        yield from norm(f"{start}norm2", width)
    yield from linear(f"{start}ffn.net.0.proj", width, config.ffn_dim)
    yield from linear(f"{start}ffn.net.2", config.ffn_dim, width)
