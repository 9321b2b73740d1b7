"""Layout of a LLaMA in GGUF files: llama.cpp's, which pairs the rows that a rotation turns.

A head's rows are there in the order of pairs: transformers' first and its middle one, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from longtake.pipelines.checkpoints.layout import CheckpointLayout, Piece, TensorNames
from longtake.pipelines.checkpoints.module_shapes import MAX_LAYERS, ModuleShapes, parse_config
from longtake.pipelines.checkpoints.names import (
    LayeredNames,
    Layers,
    Pieces,
    renamed,
    split_layers,
)
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.models.hunyuan_video.layouts.text_encoders import LLAMA
from longtake.pipelines.text_encoders.configs import LlamaConfig
from longtake.pipelines.text_encoders.tensors import llama_tensors

_OUTSIDE = {"token_embd": ("embed_tokens",), "output_norm": ("norm",)}
_LAYER = {
    "attn_norm": ("input_layernorm",),
    "attn_q": ("self_attn.q_proj",),
    "attn_k": ("self_attn.k_proj",),
    "attn_v": ("self_attn.v_proj",),
    "attn_output": ("self_attn.o_proj",),
    "ffn_norm": ("post_attention_layernorm",),
    "ffn_gate": ("mlp.gate_proj",),
    "ffn_up": ("mlp.up_proj",),
    "ffn_down": ("mlp.down_proj",),
}
_ROTATED = ("self_attn.q_proj.", "self_attn.k_proj.")
_UNUSED = ("output.weight", "rope_freqs.weight")


def _names(content: Mapping[str, Any]) -> TensorNames:
    config = parse_config(LlamaConfig, content)
    one_layer = config.model_copy(update={"num_hidden_layers": 1})
    outside, layers = split_layers(llama_tensors(one_layer), ["layers"])
    layer, shapes = renamed(layers["layers"], _LAYER), dict(layers["layers"])
    head_size = config.head_dim or config.hidden_size // config.num_attention_heads
    for name in layer:
        if name.startswith(_ROTATED):
            layer[name] = tuple(_rows(layer[name], shapes[name][0], head_size))
    lists = Layers("layers", "blk", config.num_hidden_layers, layer)
    return LayeredNames(renamed(outside, _OUTSIDE), lists)


def _rows(pieces: Pieces, num_rows: int, head_size: int) -> Iterator[Piece]:
    """The rows of a tensor in transformers' order: a head's even rows, then its odd ones."""
    (whole,) = pieces
    for head in range(0, num_rows, head_size):
        for half in (0, 1):
            for row in range(head + half, head + head_size, 2):
                yield Piece(whole.name, (row, row + 1))


def _found(tensors: Mapping[str, Tensor]) -> ModuleShapes:
    return ModuleShapes(tensors, lambda name: _OF_ANY_SIZE[name][0].name)


_OF_ANY_SIZE = _names(
    {
        **{"hidden_size": 2, "num_attention_heads": 1, "num_hidden_layers": MAX_LAYERS},
        **{"attention_bias": True, "mlp_bias": True},
    }
)
"""Names of all tensors that one can have; whatever its width, they have the same."""

LAYOUTS = (
    CheckpointLayout(
        name="llama.cpp's",
        component=LLAMA.component,
        class_name=LLAMA.class_name,
        recognizes=lambda tensors: all(each in _found(tensors) for each in LLAMA.signature),
        config=lambda tensors: LLAMA.config(_found(tensors)),
        shapes=LLAMA.shapes,
        names=_names,
        unused=lambda name: name in _UNUSED,
    ),
)
