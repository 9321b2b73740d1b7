"""Names and shapes of text encoders' weight tensors, from their configurations alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

from longtake.pipelines.loading.tensor_shapes import NamedShapes, Shape, linear, norm
from longtake.pipelines.text_encoders.configs import (
    ClipTextConfig,
    ClipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Umt5Config,
)

_TOKEN_EMBEDDING = re.compile(
    r"(.*\.)?(shared|embed_tokens|token_embedding|word_embeddings|wte)\.weight"
)

_LAYER = re.compile(r".*?\.\d+\.")
"""Beginning of the names of a layer's tensors."""


def num_streaming_values(tensors: Iterable[tuple[str, Shape]]) -> int:
    """Values on the device at a time while an encoder's layers are brought there one by one.

    They are two of the largest layer, and those outside of layers, except the token embedding.

    Args:
        tensors: Names and shapes of the encoder's tensors.
    """
    layers: Counter[str] = Counter()
    outside = 0
    for name, shape in tensors:
        if layer := _LAYER.match(name):
            layers[layer[0]] += math.prod(shape)
        elif not _TOKEN_EMBEDDING.fullmatch(name):
            outside += math.prod(shape)
    return outside + 2 * max(layers.values(), default=0)


def llama_tensors(config: LlamaConfig) -> NamedShapes:
    """Tensors of LlamaModel."""
    width, wide = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads
    size = config.head_dim or width // heads
    kv_width = size * (config.num_key_value_heads or heads)
    yield "embed_tokens.weight", (config.vocab_size, width)
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}."
        for name, size_in, size_out in (
            ("q_proj", width, size * heads),
            ("k_proj", width, kv_width),
            ("v_proj", width, kv_width),
            ("o_proj", size * heads, width),
        ):
            yield from linear(f"{layer}self_attn.{name}", size_in, size_out, config.attention_bias)
        yield from linear(f"{layer}mlp.gate_proj", width, wide, config.mlp_bias)
        yield from linear(f"{layer}mlp.up_proj", width, wide, config.mlp_bias)
        yield from linear(f"{layer}mlp.down_proj", wide, width, config.mlp_bias)
        yield f"{layer}input_layernorm.weight", (width,)
        yield f"{layer}post_attention_layernorm.weight", (width,)
    yield "norm.weight", (width,)


def clip_tensors(config: ClipTextConfig) -> NamedShapes:
    """Tensors of CLIPTextModel."""
    width = config.hidden_size
    yield "embeddings.token_embedding.weight", (config.vocab_size, width)
    yield "embeddings.position_embedding.weight", (config.max_position_embeddings, width)
    yield from _clip_layers("", width, config.intermediate_size, config.num_hidden_layers)
    yield from norm("final_layer_norm", width)


def llava_tensors(config: LlavaConfig) -> NamedShapes:
    """Tensors of LlavaForConditionalGeneration without its output head, which may be tied."""
    for name, shape in llama_tensors(config.text_config):
        yield f"language_model.{name}", shape
    yield from vision_tensors(config)


def vision_tensors(config: LlavaConfig) -> NamedShapes:
    """Tensors of LLaVA's vision tower and its two-layer projector."""
    for name, shape in clip_vision_tensors(config.vision_config):
        yield f"vision_tower.{name}", shape
    width = config.vision_config.hidden_size
    words, bias = config.text_config.hidden_size, config.multimodal_projector_bias
    yield from linear("multi_modal_projector.linear_1", width, words, bias)
    yield from linear("multi_modal_projector.linear_2", words, words, bias)


def clip_vision_tensors(config: ClipVisionConfig) -> NamedShapes:
    """Tensors of CLIPVisionModel."""
    width, patch = config.hidden_size, config.patch_size
    yield "embeddings.class_embedding", (width,)
    yield "embeddings.patch_embedding.weight", (width, config.num_channels, patch, patch)
    yield "embeddings.position_embedding.weight", (config.num_tokens, width)
    yield from norm("pre_layrnorm", width)
    yield from _clip_layers("", width, config.intermediate_size, config.num_hidden_layers)
    yield from norm("post_layernorm", width)


def umt5_tensors(config: Umt5Config) -> NamedShapes:
    """Tensors of UMT5EncoderModel, whose layers each have a relative attention bias."""
    width, heads_width = config.d_model, config.num_heads * config.d_kv
    yield "shared.weight", (config.vocab_size, width)
    for index in range(config.num_layers):
        attention = f"encoder.block.{index}.layer.0."
        for name in ("q", "k", "v"):
            yield from linear(f"{attention}SelfAttention.{name}", width, heads_width, bias=False)
        yield from linear(f"{attention}SelfAttention.o", heads_width, width, bias=False)
        yield (
            f"{attention}SelfAttention.relative_attention_bias.weight",
            (config.relative_attention_num_buckets, config.num_heads),
        )
        yield f"{attention}layer_norm.weight", (width,)
        mlp = f"encoder.block.{index}.layer.1."
        for name in ("wi_0", "wi_1") if config.is_gated else ("wi",):
            yield from linear(f"{mlp}DenseReluDense.{name}", width, config.d_ff, bias=False)
        yield from linear(f"{mlp}DenseReluDense.wo", config.d_ff, width, bias=False)
        yield f"{mlp}layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)


def _clip_layers(start: str, width: int, wide: int, num_layers: int) -> NamedShapes:
    for index in range(num_layers):
        layer = f"{start}encoder.layers.{index}."
        yield from norm(f"{layer}layer_norm1", width)
        yield from norm(f"{layer}layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}self_attn.{name}", width, width)
        yield from linear(f"{layer}mlp.fc1", width, wide)
        yield from linear(f"{layer}mlp.fc2", wide, width)
