"""Layouts of Wan's transformer: diffusers' names, and Wan's own.

ComfyUI, GGUF files and most LoRAs keep Wan's own names. They are those of ``wan/modules/model.py``
in https://github.com/Wan-Video/Wan2.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from longtake.pipelines.checkpoints.layout import CheckpointLayout, TensorNames
from longtake.pipelines.checkpoints.module_shapes import parse_config
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.wan.configs import TransformerConfig
from longtake.pipelines.models.wan.layouts.table import Table
from longtake.pipelines.models.wan.tensors import UNUSED, transformer_tensors

_TIME = "condition_embedder.time_embedder"
_TEXT = "condition_embedder.text_embedder"
_IMAGE = "condition_embedder.image_embedder"

_DIFFUSERS = Table(module="blocks", file="blocks")
_OWN = Table(
    module="blocks",
    file="blocks",
    outside={
        "time_embedding.0": (f"{_TIME}.linear_1",),
        "time_embedding.2": (f"{_TIME}.linear_2",),
        "time_projection.1": ("condition_embedder.time_proj",),
        "text_embedding.0": (f"{_TEXT}.linear_1",),
        "text_embedding.2": (f"{_TEXT}.linear_2",),
        "img_emb.emb_pos": (f"{_IMAGE}.pos_embed",),
        "img_emb.proj.0": (f"{_IMAGE}.norm1",),
        "img_emb.proj.1": (f"{_IMAGE}.ff.net.0.proj",),
        "img_emb.proj.3": (f"{_IMAGE}.ff.net.2",),
        "img_emb.proj.4": (f"{_IMAGE}.norm2",),
        "head.modulation": ("scale_shift_table",),
        "head.head": ("proj_out",),
    },
    layer={
        "modulation": ("scale_shift_table",),
        "self_attn.q": ("attn1.to_q",),
        "self_attn.k": ("attn1.to_k",),
        "self_attn.v": ("attn1.to_v",),
        "self_attn.o": ("attn1.to_out.0",),
        "self_attn.norm_q": ("attn1.norm_q",),
        "self_attn.norm_k": ("attn1.norm_k",),
        "norm3": ("norm2",),  # diffusers counts norms in the order in which they are applied
        "cross_attn.q": ("attn2.to_q",),
        "cross_attn.k": ("attn2.to_k",),
        "cross_attn.v": ("attn2.to_v",),
        "cross_attn.o": ("attn2.to_out.0",),
        "cross_attn.norm_q": ("attn2.norm_q",),
        "cross_attn.norm_k": ("attn2.norm_k",),
        "cross_attn.k_img": ("attn2.add_k_proj",),
        "cross_attn.v_img": ("attn2.add_v_proj",),
        "cross_attn.norm_k_img": ("attn2.norm_added_k",),
        "ffn.0": ("ffn.net.0.proj",),
        "ffn.2": ("ffn.net.2",),
    },
)

_COMPLETE = TransformerConfig(
    num_layers=1, image_dim=1, added_kv_proj_dim=TransformerConfig().width, pos_embed_seq_len=2
)
"""A model with every tensor that one can have."""

_HEAD_SIZE = 128
_RELEASED_HEADS = {(1536, 8960): 12, (3072, 14336): 24, (5120, 13824): 40}
"""Number of heads of the released models, by width and feed-forward width. Norms run across all
heads, so no shape tells how many there are."""


def _recognizes(table: Table, tensors: Mapping[str, Tensor]) -> bool:
    found = table.shapes(tensors, transformer_tensors(_COMPLETE))
    names = ("scale_shift_table", "blocks.0.scale_shift_table", "blocks.0.attn2.norm_k.weight")
    return all(name in found for name in names)


def _config(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    found = table.shapes(tensors, transformer_tensors(_COMPLETE))

    def optional(name: str, dims: int, dim: int) -> int | None:
        return found.shape(name, dims)[dim] if name in found else None

    width, channels, *patch = found.shape("patch_embedding.weight", 5)
    ffn_dim = found.shape("blocks.0.ffn.net.0.proj.weight", 2)[0]
    heads = _RELEASED_HEADS.get((width, ffn_dim))
    known = {"num_attention_heads": heads, "attention_head_dim": _HEAD_SIZE} if heads else {}
    return {
        **known,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": found.shape("proj_out.weight", 2)[0] // math.prod(patch),
        "text_dim": found.shape(f"{_TEXT}.linear_1.weight", 2)[1],
        "freq_dim": found.shape(f"{_TIME}.linear_1.weight", 2)[1],
        "ffn_dim": ffn_dim,
        "num_layers": found.num_layers("blocks.{}.scale_shift_table"),
        "cross_attn_norm": "blocks.0.norm2.weight" in found,
        "image_dim": optional(f"{_IMAGE}.norm1.weight", 1, 0),
        "added_kv_proj_dim": optional("blocks.0.attn2.add_k_proj.weight", 2, 1),
        "pos_embed_seq_len": optional(f"{_IMAGE}.pos_embed", 3, 1),
    }


def _shapes(content: Mapping[str, Any]) -> NamedShapes:
    return transformer_tensors(parse_config(TransformerConfig, content))


def _names(table: Table, config: TransformerConfig) -> TensorNames:
    one_layer = config.model_copy(update={"num_layers": 1})
    return table.names(transformer_tensors(one_layer), config.num_layers)


def _layout(name: str, table: Table) -> CheckpointLayout:
    return CheckpointLayout(
        name=name,
        component="transformer",
        class_name="WanTransformer3DModel",
        recognizes=partial(_recognizes, table),
        config=partial(_config, table),
        shapes=_shapes,
        names=lambda content: _names(table, parse_config(TransformerConfig, content)),
        unused=lambda tensor: UNUSED.fullmatch(tensor) is not None,
    )


LAYOUTS = (_layout("diffusers'", _DIFFUSERS), _layout("Wan's own", _OWN))
"""They are the same for both experts of Wan 2.2: no file says which of them it holds."""
