"""Layouts of Wan's autoencoders, 2.1 and 2.2: diffusers' names, and Wan's own.

Wan's own names are those of ``wan/modules/vae2_1.py`` and ``wan/modules/vae2_2.py`` in
https://github.com/Wan-Video/Wan2.2, which ComfyUI's files keep. There, 2.1 numbers the layers of
the encoder and of the decoder from end to end, and 2.2 those of each block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from longtake.errors import ModelError
from longtake.pipelines.checkpoints.layout import CheckpointLayout, Piece, TensorNames
from longtake.pipelines.checkpoints.module_shapes import ModuleShapes, parse_config
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.codec.tensors import vae_tensors

_OUTER = {
    f"{theirs}.{kind}": f"{own}.{kind}"
    for theirs, own, kinds in (
        ("quant_conv", "conv1", ("weight", "bias")),
        ("post_quant_conv", "conv2", ("weight", "bias")),
        ("encoder.conv_in", "encoder.conv1", ("weight", "bias")),
        ("encoder.norm_out", "encoder.head.0", ("gamma",)),
        ("encoder.conv_out", "encoder.head.2", ("weight", "bias")),
        ("decoder.conv_in", "decoder.conv1", ("weight", "bias")),
        ("decoder.norm_out", "decoder.head.0", ("gamma",)),
        ("decoder.conv_out", "decoder.head.2", ("weight", "bias")),
    )
    for kind in kinds
}
_MIDDLE = {
    f"{coder}.mid_block.{theirs}": f"{coder}.middle.{number}"
    for coder in ("encoder", "decoder")
    for number, theirs in enumerate(("resnets.0", "attentions.0", "resnets.1"))
}
_PARTS = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
"""Parts of a residual block; those of other layers have the same names in both layouts."""

_TENSOR = re.compile(
    r"(?P<layer>.+)\.(?P<part>norm1|conv1|norm2|conv2|conv_shortcut|resample\.1|time_conv|norm"
    r"|to_qkv|proj)\.(?P<kind>weight|bias|gamma)"
)

_ENCODER_LAYER = re.compile(
    r"encoder\.(?:downsamples|down_blocks)\.(?P<block>\d{1,3})"
    r"(?:\.(?:(?:downsamples|resnets)\.(?P<number>\d{1,3})|downsampler))?"
    r"\.(?P<part>residual\.6|conv2|resample\.1|time_conv)\.weight"
)
"""One tensor of each layer of the encoder, and the convolution in time of a resampling, in either
layout."""

_LAST = 1000
_MAX_CHANNELS = 1024

_RESIDUAL_MARKS = (
    "encoder.downsamples.0.downsamples.0.residual.6.weight",
    "encoder.down_blocks.0.resnets.0.conv2.weight",
)
"""Tensors of the residual autoencoder, 2.2's, in either layout."""


class _Stage(NamedTuple):
    """Layers of the encoder up to a resampling.

    Attributes:
        widths: Output channels of each residual block.
        in_time: Whether the resampling halves the frames; None for the last stage.
    """

    widths: list[int]
    in_time: bool | None


def _stages(tensors: Mapping[str, Tensor]) -> list[_Stage]:
    """The stages of the encoder, in execution order."""
    layers: dict[tuple[int, int], dict[str, int]] = {}
    for name, tensor in tensors.items():
        if match := _ENCODER_LAYER.fullmatch(name):
            # A resampling follows the residual blocks, where diffusers numbers these alone.
            position = int(match["block"]), int(match["number"] or _LAST)
            layers.setdefault(position, {})[match["part"]] = max(tensor.shape[:1], default=0)
    stages, widths = list[_Stage](), list[int]()
    for _, parts in sorted(layers.items()):
        if "resample.1" in parts:
            stages.append(_Stage(widths, "time_conv" in parts))
            widths = []
        else:
            widths.append(next(iter(parts.values())))
    stages.append(_Stage(widths, None))
    if not all(stage.widths for stage in stages):
        raise ModelError("the file does not hold an autoencoder's encoder whole")
    return stages


def _config(outer: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    found = ModuleShapes(tensors, lambda name: outer.get(name, name))
    stages = _stages(tensors)
    base, channels = found.shape("encoder.conv_in.weight", 5)[:2]
    dim_mult = [stage.widths[-1] // base for stage in stages]
    in_time = [stage.in_time for stage in stages[:-1]]
    decoder_base = found.shape("decoder.conv_in.weight", 5)[0] // max(1, dim_mult[-1])
    patch = math.isqrt(channels // 3)
    return {
        "base_dim": base,
        "decoder_base_dim": None if decoder_base == base else decoder_base,
        "z_dim": found.shape("post_quant_conv.weight", 5)[0],
        "dim_mult": dim_mult,
        "num_res_blocks": len(stages[0].widths),
        "temperal_downsample": in_time,
        "is_residual": any(name in tensors for name in _RESIDUAL_MARKS),
        "in_channels": channels,
        "out_channels": found.shape("decoder.conv_out.weight", 5)[0],
        "patch_size": patch if patch > 1 else None,
        "scale_factor_temporal": 2 ** sum(map(bool, in_time)),
        "scale_factor_spatial": patch * 2 ** len(in_time),
    }


def _layers(config: VaeConfig) -> Iterator[tuple[str, str]]:
    """Names of the layers of encoder and decoder, in diffusers' layout and in Wan's own."""
    yield from _MIDDLE.items()
    down, up, nested = config.num_res_blocks + 1, config.num_res_blocks + 2, config.is_residual
    for block in range(len(config.dim_mult)):
        for each in range(down):
            number = block * down + each
            theirs, own = f"{number}", f"{number}"
            if nested:
                theirs = f"{block}.downsampler" if each == down - 1 else f"{block}.resnets.{each}"
                own = f"{block}.downsamples.{each}"
            yield f"encoder.down_blocks.{theirs}", f"encoder.downsamples.{own}"
        for each in range(up):
            theirs = f"resnets.{each}"
            if each == up - 1:
                theirs = "upsampler" if nested else "upsamplers.0"
            own = f"{block}.upsamples.{each}" if nested else f"{block * up + each}"
            yield f"decoder.up_blocks.{block}.{theirs}", f"decoder.upsamples.{own}"


def _own_name(layers: Mapping[str, str], name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    match = _TENSOR.fullmatch(name)
    assert match is not None, name
    part = _PARTS.get(match["part"], match["part"])
    return f"{layers[match['layer']]}.{part}.{match['kind']}"


def _parse(content: Mapping[str, Any]) -> VaeConfig:
    """The configuration; no shape depends on the statistics of the latents, which it may lack."""
    channels = content.get("z_dim")
    if isinstance(channels, int) and channels <= _MAX_CHANNELS:
        statistics = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
        content = {**statistics, **content}
    return parse_config(VaeConfig, content)


def _shapes(content: Mapping[str, Any]) -> NamedShapes:
    return vae_tensors(_parse(content))


def _names(content: Mapping[str, Any]) -> TensorNames:
    return {name: (Piece(name),) for name, _ in _shapes(content)}


def _own_names(content: Mapping[str, Any]) -> TensorNames:
    layers = dict(_layers(_parse(content)))
    return {name: (Piece(_own_name(layers, name)),) for name, _ in _shapes(content)}


def _layout(
    name: str,
    mark: str,
    outer: Mapping[str, str],
    names: Callable[[Mapping[str, Any]], TensorNames],
) -> CheckpointLayout:
    return CheckpointLayout(
        name=name,
        component="vae",
        class_name="AutoencoderKLWan",
        recognizes=lambda tensors: mark in tensors,
        config=partial(_config, outer),
        shapes=_shapes,
        names=names,
    )


LAYOUTS = (
    _layout("diffusers'", "decoder.mid_block.resnets.0.norm1.gamma", {}, _names),
    _layout("Wan's own", "decoder.middle.0.residual.0.gamma", _OUTER, _own_names),
)
"""Shapes do not tell ``latents_mean`` and ``latents_std``: they are the base model's."""
