"""Layouts of Wan's text encoder: transformers' names, Wan's own, and llama.cpp's in GGUF files.

ComfyUI's files have transformers' names. Wan's own are those of ``wan/modules/t5.py`` in
https://github.com/Wan-Video/Wan2.1; llama.cpp's are the T5 encoder's in the ``gguf`` package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from longtake.pipelines.checkpoints.layout import CheckpointLayout, TensorNames
from longtake.pipelines.checkpoints.module_shapes import parse_config
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.wan.layouts.table import Table
from longtake.pipelines.text_encoders.configs import Umt5Config
from longtake.pipelines.text_encoders.tensors import umt5_tensors

_LAYERS, _FIRST = "encoder.block", "encoder.block.0."
_ATTENTION, _MLP = "layer.0.SelfAttention", "layer.1.DenseReluDense"
_BIAS = f"{_ATTENTION}.relative_attention_bias"
_ENCODERS_EMBEDDING = "encoder.embed_tokens"

_SHARED = Table(module=_LAYERS, file=_LAYERS)
_UNSHARED = Table(module=_LAYERS, file=_LAYERS, outside={_ENCODERS_EMBEDDING: ("shared",)})
_OWN = Table(
    module=_LAYERS,
    file="blocks",
    outside={"token_embedding": ("shared",), "norm": ("encoder.final_layer_norm",)},
    layer={
        "norm1": ("layer.0.layer_norm",),
        "attn.q": (f"{_ATTENTION}.q",),
        "attn.k": (f"{_ATTENTION}.k",),
        "attn.v": (f"{_ATTENTION}.v",),
        "attn.o": (f"{_ATTENTION}.o",),
        "pos_embedding.embedding": (_BIAS,),
        "norm2": ("layer.1.layer_norm",),
        "ffn.gate.0": (f"{_MLP}.wi_0",),
        "ffn.fc1": (f"{_MLP}.wi_1",),
        "ffn.fc2": (f"{_MLP}.wo",),
    },
)
_LLAMA_CPP = Table(
    module=_LAYERS,
    file="enc.blk",
    outside={"token_embd": ("shared",), "enc.output_norm": ("encoder.final_layer_norm",)},
    layer={
        "attn_norm": ("layer.0.layer_norm",),
        "attn_q": (f"{_ATTENTION}.q",),
        "attn_k": (f"{_ATTENTION}.k",),
        "attn_v": (f"{_ATTENTION}.v",),
        "attn_o": (f"{_ATTENTION}.o",),
        "attn_rel_b": (_BIAS,),
        "ffn_norm": ("layer.1.layer_norm",),
        "ffn_gate": (f"{_MLP}.wi_0",),
        "ffn_up": (f"{_MLP}.wi_1",),
        "ffn_down": (f"{_MLP}.wo",),
    },
)

_COMPLETE = Umt5Config(num_layers=1)
"""A model with one layer. All that are known are gated."""

_UNUSED = re.compile(r"(decoder|lm_head)\..*|spiece_model")
"""Names of the decoder's tensors in a whole UMT5, and of the vocabulary in ComfyUI's files."""


def _recognizes(table: Table, tensors: Mapping[str, Tensor]) -> bool:
    """Whether every layer has an attention bias of its own; of a T5's, only the first one has."""
    if table is _SHARED and f"{_ENCODERS_EMBEDDING}.weight" in tensors:
        return False  # of two embeddings, the encoder uses its own
    found = table.shapes(tensors, umt5_tensors(_COMPLETE))
    num_layers = found.num_layers(f"{_LAYERS}.{{}}.{_ATTENTION}.q.weight")
    biases = found.num_layers(f"{_LAYERS}.{{}}.{_BIAS}.weight")
    return "shared.weight" in found and num_layers == biases > 0


def _config(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    found = table.shapes(tensors, umt5_tensors(_COMPLETE))
    vocab_size, width = found.shape("shared.weight", 2)
    num_buckets, heads = found.shape(f"{_FIRST}{_BIAS}.weight", 2)
    return {
        "vocab_size": vocab_size,
        "d_model": width,
        "d_kv": found.shape(f"{_FIRST}{_ATTENTION}.q.weight", 2)[0] // heads,
        "d_ff": found.shape(f"{_FIRST}{_MLP}.wi_0.weight", 2)[0],
        "num_layers": found.num_layers(f"{_LAYERS}.{{}}.{_BIAS}.weight"),
        "num_heads": heads,
        "relative_attention_num_buckets": num_buckets,
        "feed_forward_proj": "gated-gelu",
    }


def _shapes(content: Mapping[str, Any]) -> NamedShapes:
    return umt5_tensors(parse_config(Umt5Config, content))


def _names(table: Table, config: Umt5Config) -> TensorNames:
    one_layer = config.model_copy(update={"num_layers": 1})
    return table.names(umt5_tensors(one_layer), config.num_layers)


def _layout(name: str, table: Table, unused: re.Pattern[str] = _UNUSED) -> CheckpointLayout:
    return CheckpointLayout(
        name=name,
        component="text_encoder",
        class_name="UMT5EncoderModel",
        recognizes=partial(_recognizes, table),
        config=partial(_config, table),
        shapes=_shapes,
        names=lambda content: _names(table, parse_config(Umt5Config, content)),
        unused=lambda tensor: unused.fullmatch(tensor) is not None,
    )


LAYOUTS = (
    _layout("transformers' and ComfyUI's", _SHARED),
    _layout(
        "transformers', with the encoder's embedding",
        _UNSHARED,
        re.compile(rf"{_UNUSED.pattern}|shared\.weight"),
    ),
    _layout("Wan's own", _OWN),
    _layout("llama.cpp's", _LLAMA_CPP),
)
"""Shapes do not tell ``relative_attention_max_distance``: it is the base model's."""
