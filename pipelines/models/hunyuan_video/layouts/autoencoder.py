"""Layouts of HunyuanVideo's autoencoder: diffusers', which is also tencent's, and ComfyUI's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from longtake.pipelines.checkpoints.layout import CheckpointLayout, Piece, TensorNames
from longtake.pipelines.checkpoints.module_shapes import ModuleShapes, parse_config
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.hunyuan_video.configs import VaeConfig
from longtake.pipelines.models.hunyuan_video.tensors import vae_tensors

FileName = Callable[[str, int], str]
"""Name in a file of a tensor of the module, given the number of the encoder's blocks."""

_SIGNATURE = (
    "encoder.conv_in.conv.weight",
    "encoder.down_blocks.0.resnets.0.conv1.conv.weight",
    "post_quant_conv.weight",
)
"""Tensors that together no other autoencoder has: convolutions that wrap another one."""

_COMFYUI = (
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"(down|up)_blocks\.(\d+)\.resnets", r"\1.\2.block"),
    (r"(down|up)_blocks\.(\d+)\.\1samplers\.0", r"\1.\2.\1sample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)
"""Parts of diffusers' names, and what ComfyUI has in their place."""


def _comfyui(name: str, num_blocks: int) -> str:
    """ComfyUI's name, which counts the decoder's blocks from the last one."""
    for old, new in _COMFYUI:
        name = re.sub(old, new, name)
    return re.sub(
        r"^decoder\.up\.(\d+)", lambda up: f"decoder.up.{num_blocks - 1 - int(up[1])}", name
    )


def _layout(name: str, file_name: FileName) -> CheckpointLayout:
    def found(tensors: Mapping[str, Tensor]) -> ModuleShapes:
        return ModuleShapes(tensors, lambda own: file_name(own, 0))  # the encoder needs no number

    def names(content: Mapping[str, Any]) -> TensorNames:
        config = parse_config(VaeConfig, content)
        num_blocks = len(config.block_out_channels)
        return {own: (Piece(file_name(own, num_blocks)),) for own, _ in vae_tensors(config)}

    return CheckpointLayout(
        name=name,
        component="vae",
        class_name="AutoencoderKLHunyuanVideo",
        recognizes=lambda tensors: all(each in found(tensors) for each in _SIGNATURE),
        config=lambda tensors: _config(found(tensors)),
        shapes=_shapes,
        names=names,
    )


def _config(found: ModuleShapes) -> dict[str, Any]:
    """What the shapes tell: not the groups of the norms, and not the compression in space."""
    block = "encoder.down_blocks.{}.resnets.0.conv1.conv.weight"
    num_blocks = found.num_layers(block)
    return {
        "in_channels": found.shape("encoder.conv_in.conv.weight", 5)[1],
        "out_channels": found.shape("decoder.conv_out.conv.weight", 5)[0],
        "latent_channels": found.shape("post_quant_conv.weight", 5)[0],
        "block_out_channels": [
            found.shape(block.format(index), 5)[0] for index in range(num_blocks)
        ],
        "down_block_types": ["HunyuanVideoDownBlock3D"] * num_blocks,
        "up_block_types": ["HunyuanVideoUpBlock3D"] * num_blocks,
        "layers_per_block": found.num_layers("encoder.down_blocks.0.resnets.{}.conv1.conv.weight"),
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in found,
    }


def _shapes(content: Mapping[str, Any]) -> NamedShapes:
    return vae_tensors(parse_config(VaeConfig, content))


LAYOUTS = (
    _layout("diffusers' and tencent's", lambda name, num_blocks: name),
    _layout("ComfyUI's", _comfyui),
)
