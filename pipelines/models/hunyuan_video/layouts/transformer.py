"""Layouts of HunyuanVideo's transformer: diffusers', tencent's and ComfyUI's.

tencent's names are those of ``hyvideo/modules/models.py`` in https://github.com/Tencent/HunyuanVideo,
which most files and LoRAs keep, ComfyUI's those of ``comfy/ldm/hunyuan_video/model.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longtake.pipelines.checkpoints.layout import (
    CheckpointLayout,
    Lookalike,
    Piece,
    TensorNames,
)
from longtake.pipelines.checkpoints.module_shapes import MAX_LAYERS, ModuleShapes, parse_config
from longtake.pipelines.checkpoints.names import (
    LayeredNames,
    Layers,
    Pieces,
    renamed,
    split_layers,
)
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.hunyuan_video.configs import TransformerConfig
from longtake.pipelines.models.hunyuan_video.tensors import transformer_tensors

Table = Mapping[str, Sequence[str]]

_REFINER = "context_embedder.token_refiner.refiner_blocks"
_LISTS = {
    _REFINER: "num_refiner_layers",
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
}
"""Lists of blocks in the module, and the number of blocks of each in config.json."""

_SIGNATURE = (
    f"{_REFINER}.0.attn.to_q.weight",
    "time_text_embed.text_embedder.linear_1.weight",
    "transformer_blocks.0.attn.norm_q.weight",
    "transformer_blocks.0.attn.add_q_proj.weight",
)
"""Tensors that together no other transformer has: HunyuanVideo 1.5 has no pooled text, Flux no
refiner."""

_FLUX = Lookalike(
    name="Flux",
    architecture="flux|chroma",
    num_layers={"transformer_blocks": 19, "single_transformer_blocks": 38},
)
"""Its blocks have the names and the width of HunyuanVideo's, in diffusers', kohya's and ComfyUI's
spelling; HunyuanVideo has 20 and 40 of them. Source: ``flux/util.py`` in
https://github.com/black-forest-labs/flux."""


@dataclass(frozen=True)
class _Names:
    """A layout's tables: by name of a submodule in the file, what it consists of in the module.

    Attributes:
        lists: Names of the lists of blocks in the file, by their names in the module.
        outside: Table of what is outside of blocks.
        blocks: Tables of the blocks, by list.
        shift_first: Whether the last modulation has the shift above the scale, not below it.
    """

    lists: Mapping[str, str] = field(default_factory=lambda: {each: each for each in _LISTS})
    outside: Table = field(default_factory=dict)
    blocks: Mapping[str, Table] = field(default_factory=lambda: dict.fromkeys(_LISTS, {}))
    shift_first: bool = False

    def of(self, content: Mapping[str, Any]) -> TensorNames:
        """The names for the content of a config.json."""
        config = parse_config(TransformerConfig, content)
        outside, blocks = split_layers(
            transformer_tensors(config.model_copy(update=dict.fromkeys(_LISTS.values(), 1))), _LISTS
        )
        pieces = renamed(outside, self.outside)
        if self.shift_first:
            for name in ("norm_out.linear.weight", "norm_out.linear.bias"):
                pieces[name] = _halves_swapped(pieces[name], config.width)
        lists = [
            Layers(own, file, getattr(config, _LISTS[own]), renamed(blocks[own], self.blocks[own]))
            for own, file in self.lists.items()
        ]
        return LayeredNames(pieces, *lists)


def _halves_swapped(pieces: Pieces, rows: int) -> Pieces:
    (whole,) = pieces
    return Piece(whole.name, (rows, 2 * rows)), Piece(whole.name, (0, rows))


_TENCENT = _Names(
    lists={
        _REFINER: "txt_in.individual_token_refiner.blocks",
        "transformer_blocks": "double_blocks",
        "single_transformer_blocks": "single_blocks",
    },
    outside={
        "img_in.proj": ("x_embedder.proj",),
        "time_in.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.mlp.0": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.mlp.2": ("time_text_embed.guidance_embedder.linear_2",),
        "txt_in.input_embedder": ("context_embedder.proj_in",),
        "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
        "txt_in.t_embedder.mlp.2": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
        "txt_in.c_embedder.linear_1": ("context_embedder.time_text_embed.text_embedder.linear_1",),
        "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "final_layer.linear": ("proj_out",),
    },
    blocks={
        _REFINER: {
            "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "self_attn_proj": ("attn.to_out.0",),
            "mlp.fc1": ("ff.net.0.proj",),
            "mlp.fc2": ("ff.net.2",),
            "adaLN_modulation.1": ("norm_out.linear",),
        },
        "transformer_blocks": {
            "img_mod.linear": ("norm1.linear",),
            "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn_q_norm": ("attn.norm_q",),
            "img_attn_k_norm": ("attn.norm_k",),
            "img_attn_proj": ("attn.to_out.0",),
            "img_mlp.fc1": ("ff.net.0.proj",),
            "img_mlp.fc2": ("ff.net.2",),
            "txt_mod.linear": ("norm1_context.linear",),
            "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn_q_norm": ("attn.norm_added_q",),
            "txt_attn_k_norm": ("attn.norm_added_k",),
            "txt_attn_proj": ("attn.to_add_out",),
            "txt_mlp.fc1": ("ff_context.net.0.proj",),
            "txt_mlp.fc2": ("ff_context.net.2",),
        },
        "single_transformer_blocks": {
            "modulation.linear": ("norm.linear",),
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": ("proj_out",),
            "q_norm": ("attn.norm_q",),
            "k_norm": ("attn.norm_k",),
        },
    },
    shift_first=True,
)

_COMFYUI = (
    ("_in.mlp.0", "_in.in_layer"),
    ("_in.mlp.2", "_in.out_layer"),
    ("t_embedder.mlp.0", "t_embedder.in_layer"),
    ("t_embedder.mlp.2", "t_embedder.out_layer"),
    ("c_embedder.linear_1", "c_embedder.in_layer"),
    ("c_embedder.linear_2", "c_embedder.out_layer"),
    ("mod.linear", "mod.lin"),
    ("modulation.linear", "modulation.lin"),
    ("attn_qkv", "attn.qkv"),
    ("attn_proj", "attn.proj"),
    ("attn_q_norm", "attn.norm.query_norm"),
    ("attn_k_norm", "attn.norm.key_norm"),
    ("q_norm", "norm.query_norm"),
    ("k_norm", "norm.key_norm"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
)
"""Parts of tencent's names, and what ComfyUI has in their place."""


def _comfyui(norm_weight: str) -> _Names:
    """ComfyUI's tables, made of tencent's.

    Args:
        norm_weight: Name of the weight of the norms of queries and keys: "scale", or in later
            versions "weight".
    """

    def table(tencent: Table) -> Table:
        return dict(entry(name, owns) for name, owns in tencent.items())

    def entry(name: str, owns: Sequence[str]) -> tuple[str, Sequence[str]]:
        for old, new in _COMFYUI:
            name = name.replace(old, new)
        if name.endswith("_norm"):
            return f"{name}.{norm_weight}", [f"{own}.weight" for own in owns]
        return name, owns

    blocks = {own: table(each) for own, each in _TENCENT.blocks.items()}
    return _Names(_TENCENT.lists, table(_TENCENT.outside), blocks, shift_first=True)


def _layout(name: str, names: _Names) -> CheckpointLayout:
    of_any_size = names.of(dict.fromkeys(_LISTS.values(), MAX_LAYERS))

    def shapes(tensors: Mapping[str, Tensor]) -> ModuleShapes:
        return ModuleShapes(tensors, lambda own: of_any_size[own][0].name)

    def recognizes(tensors: Mapping[str, Tensor]) -> bool:
        return all(each in shapes(tensors) for each in _SIGNATURE)

    return CheckpointLayout(
        name=name,
        component="transformer",
        class_name="HunyuanVideoTransformer3DModel",
        recognizes=recognizes,
        config=lambda tensors: _config(shapes(tensors)),
        shapes=_shapes,
        names=names.of,
        lookalikes=(_FLUX,),
        lora_prefixes=("Hunyuan_video_I2V_lora_",),
    )


def _config(found: ModuleShapes) -> dict[str, Any]:
    """What the shapes tell; image_condition_type only with latent_concat's input channels."""
    width, channels, *patch = found.shape("x_embedder.proj.weight", 5)
    head_dim = found.shape("transformer_blocks.0.attn.norm_q.weight", 1)[0]
    out_channels = found.shape("proj_out.weight", 2)[0] // math.prod(patch)
    config = {
        "in_channels": channels,
        "out_channels": out_channels,
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "mlp_ratio": _ratio(found.shape("transformer_blocks.0.ff.net.0.proj.weight", 2)[0], width),
        "patch_size": patch[1],
        "patch_size_t": patch[0],
        "qk_norm": "rms_norm",
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in found,
        "text_embed_dim": found.shape("context_embedder.proj_in.weight", 2)[1],
        "pooled_projection_dim": found.shape("time_text_embed.text_embedder.linear_1.weight", 2)[1],
    }
    for own, count in _LISTS.items():
        tensor = "proj_out" if own.startswith("single") else "attn.to_out.0"
        config[count] = found.num_layers(f"{own}.{{}}.{tensor}.weight")
    if channels == 2 * out_channels + 1:
        config["image_condition_type"] = "latent_concat"
    return config


def _ratio(wide: int, width: int) -> float:
    """The ratio of two widths, such that the smaller one times it, rounded down, is the larger."""
    ratio = wide / width
    return ratio if int(width * ratio) == wide else math.nextafter(ratio, math.inf)


def _shapes(content: Mapping[str, Any]) -> NamedShapes:
    return transformer_tensors(parse_config(TransformerConfig, content))


LAYOUTS = (
    _layout("diffusers'", _Names()),
    _layout("tencent's", _TENCENT),
    _layout("ComfyUI's", _comfyui("scale")),
    _layout("later ComfyUI's", _comfyui("weight")),
)
