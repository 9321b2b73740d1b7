"""Layouts of Wan's image encoder: transformers' names, and Wan's own.

ComfyUI's files have transformers' names, with the projection of CLIP. Wan's own are those of
``wan/modules/clip.py`` in https://github.com/Wan-Video/Wan2.1, whose file also holds the text model
and the projection; queries, keys and values are one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from longtake.pipelines.checkpoints.layout import CheckpointLayout, TensorNames
from longtake.pipelines.checkpoints.module_shapes import parse_config
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.wan.layouts.table import Table
from longtake.pipelines.text_encoders.configs import ClipVisionConfig
from longtake.pipelines.text_encoders.tensors import clip_vision_tensors

_START = "vision_model."
_LAYERS, _FIRST_MLP = f"{_START}encoder.layers", f"{_START}encoder.layers.0.mlp.fc1.weight"
_CLASS, _PATCHES = f"{_START}embeddings.class_embedding", f"{_START}embeddings.patch_embedding"
_POSITIONS = f"{_START}embeddings.position_embedding"
_NORMS = f"{_START}pre_layrnorm", f"{_START}post_layernorm"

_TRANSFORMERS = Table(module=_LAYERS, file=_LAYERS)
_TRANSFORMERS_5 = Table(
    module=_LAYERS,
    file=_LAYERS.removeprefix(_START),
    outside={
        name.removeprefix(_START): (name,) for name in (_CLASS, _PATCHES, _POSITIONS, *_NORMS)
    },
)
_OWN = Table(
    module=_LAYERS,
    file="visual.transformer",
    outside={
        "visual.cls_embedding": (_CLASS,),
        "visual.patch_embedding": (_PATCHES,),
        "visual.pos_embedding": (f"{_POSITIONS}.weight",),
        "visual.pre_norm": (_NORMS[0],),
        "visual.post_norm": (_NORMS[1],),
    },
    layer={
        "norm1": ("layer_norm1",),
        "attn.to_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": ("self_attn.out_proj",),
        "norm2": ("layer_norm2",),
        "mlp.0": ("mlp.fc1",),
        "mlp.2": ("mlp.fc2",),
    },
)

_UNUSED = re.compile(
    r"(text_model|text_projection|visual_projection)\..*|logit_scale|.*position_ids"
)
_UNUSED_OF_OWN = re.compile(r"textual\..*|visual\.head|log_scale")

_COMPLETE = ClipVisionConfig(num_hidden_layers=1)
"""A model with one layer."""


def _recognizes(table: Table, tensors: Mapping[str, Tensor]) -> bool:
    found = table.shapes(tensors, _tensors(_COMPLETE))
    return _CLASS in found and _FIRST_MLP in found


def _config(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    found = table.shapes(tensors, _tensors(_COMPLETE))
    width, _, patch, _ = found.shape(f"{_PATCHES}.weight", 4)
    positions = found.shape(f"{_POSITIONS}.weight", 3 if table is _OWN else 2)  # Wan's: [1, ...]
    return {
        "hidden_size": width,
        "intermediate_size": found.shape(_FIRST_MLP, 2)[0],
        "num_hidden_layers": found.num_layers(f"{_LAYERS}.{{}}.mlp.fc1.weight"),
        "patch_size": patch,
        "image_size": patch * math.isqrt(positions[-2] - 1),
    }


def _tensors(config: ClipVisionConfig) -> NamedShapes:
    """Tensors by the names before version 5 of transformers, which every version reads."""
    return ((_START + name, shape) for name, shape in clip_vision_tensors(config))


def _parse(content: Mapping[str, Any]) -> ClipVisionConfig:
    """The configuration; no shape depends on the number of heads, which it may lack."""
    return parse_config(ClipVisionConfig, {"num_attention_heads": 1, **content})


def _names(table: Table, content: Mapping[str, Any]) -> TensorNames:
    config = _parse(content)
    one_layer = config.model_copy(update={"num_hidden_layers": 1})
    return table.names(_tensors(one_layer), config.num_hidden_layers)


def _layout(name: str, table: Table, unused: re.Pattern[str] = _UNUSED) -> CheckpointLayout:
    return CheckpointLayout(
        name=name,
        component="image_encoder",
        class_name="CLIPVisionModel",
        recognizes=partial(_recognizes, table),
        config=partial(_config, table),
        shapes=lambda content: _tensors(_parse(content)),
        names=partial(_names, table),
        unused=lambda tensor: unused.fullmatch(tensor) is not None,
    )


LAYOUTS = (
    _layout("transformers' and ComfyUI's", _TRANSFORMERS),
    _layout("transformers 5's", _TRANSFORMERS_5),
    _layout("Wan's own", _OWN, _UNUSED_OF_OWN),
)
"""Shapes do not tell ``num_attention_heads``: it is the base model's."""
