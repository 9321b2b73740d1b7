"""Layouts of Wan's autoencoders against diffusers' converter and its script, at real sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from longtake.errors import ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.wan.codec.config import VaeConfig
from tests import foreign_wan, tiny_wan
from tests.unit.pipelines.models.wan.layouts.files import (
    Tensors,
    header,
    layout_of,
    module_tensors,
    shapes_of,
)

PRESETS = {"2.1": "wan2.1-t2v-1.3b", "2.2": "wan2.2-ti2v-5b"}
TINY = {"2.1": "wan21-t2v", "2.2": "wan22-ti2v"}
LAYOUT_NAMES = ("diffusers'", "Wan's own")


def released(version: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a released autoencoder, without values, and its configuration."""
    config = Checkpoint.open(PRESETS[version], configs_only=True).config("vae")
    with torch.device("meta"):
        return AutoencoderKLWan.from_config(config).state_dict(), config


def written(layout_name: str, tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Any]:
    own = layout_name == "Wan's own"
    return foreign_wan.own_autoencoder(tensors, config) if own else dict(tensors)


def converted_by_script(name: str) -> str:
    """Wan 2.2's name in diffusers, by the rules of scripts/convert_wan_to_diffusers.py."""
    parts = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2"}
    parts |= {"residual.6": "conv2", "shortcut": "conv_shortcut"}
    for old, new in parts.items():
        name = re.sub(rf"\.{re.escape(old)}\.", f".{new}.", name)
    for coder, streams, blocks in (("en", "down", "downsample"), ("de", "up", "upsample")):
        start, new = rf"^{coder}coder\.{streams}samples\.(\d+)\.{streams}samples\.", f"{coder}coder"
        sampler = rf"{new}.{streams}_blocks.\1.{blocks}r.\2"
        name = re.sub(rf"{start}\d+\.((?:resample|time_conv)\..*)", sampler, name)
        name = re.sub(start, rf"{new}.{streams}_blocks.\1.resnets.", name)
        name = name.replace(f"{new}.middle.0.", f"{new}.mid_block.resnets.0.")
        name = name.replace(f"{new}.middle.1.", f"{new}.mid_block.attentions.0.")
        name = name.replace(f"{new}.middle.2.", f"{new}.mid_block.resnets.1.")
        name = name.replace(f"{new}.head.0.", f"{new}.norm_out.")
        name = name.replace(f"{new}.head.2.", f"{new}.conv_out.")
        name = name.replace(f"{new}.conv1.", f"{new}.conv_in.")
    return re.sub("^conv2", "post_quant_conv", re.sub("^conv1", "quant_conv", name))


@pytest.mark.parametrize("version", PRESETS)
def test_own_names_at_real_size(version: str) -> None:
    """Each tensor of the file is one of the module, by the name that diffusers converts it to."""
    expected, config = released(version)
    own = foreign_wan.own_autoencoder(expected, config)
    if version == "2.1":
        reference = convert_wan_vae_to_diffusers(dict(own))
    else:
        reference = {converted_by_script(name): each for name, each in own.items()}
    assert shapes_of(reference) == shapes_of(expected)
    layout = layout_of(own)
    told = layout.config(header(own))
    assert dict(layout.shapes(told)) == shapes_of(expected)
    names = layout.names(told)
    assert set(names) == set(expected)
    for key, (piece,) in names.items():
        assert piece.rows is None and own[piece.name] is reference[key]


def test_names_that_were_read_in_released_files() -> None:
    """A few, as they are public, in case that converter and table share a mistake."""
    own = foreign_wan.own_autoencoder(*released("2.2"))
    assert {
        "conv1.weight",
        "encoder.downsamples.0.downsamples.0.residual.0.gamma",
        "encoder.downsamples.1.downsamples.2.time_conv.weight",
        "encoder.middle.1.to_qkv.weight",
        "decoder.upsamples.0.upsamples.3.resample.1.weight",
        "decoder.upsamples.2.upsamples.0.shortcut.weight",
        "decoder.head.2.bias",
    } <= set(own)


@pytest.mark.parametrize("layout_name", LAYOUT_NAMES)
@pytest.mark.parametrize("version", PRESETS)
def test_configuration_from_shapes(version: str, layout_name: str) -> None:
    """All but the statistics of the latents, which no shape tells."""
    tensors, config = released(version)
    file = written(layout_name, tensors, config)
    layout = layout_of(file)
    told = layout.config(header(file))
    assert layout.name == layout_name
    statistics = {name: config[name] for name in ("latents_mean", "latents_std")}
    assert statistics.keys().isdisjoint(told)
    assert VaeConfig.model_validate({**statistics, **told}) == VaeConfig.model_validate(config)


@pytest.mark.parametrize("layout_name", LAYOUT_NAMES)
@pytest.mark.parametrize("version", TINY)
def test_values(version: str, layout_name: str) -> None:
    model = tiny_wan.autoencoder(**tiny_wan.KINDS[TINY[version]].vae)
    expected, config = model.state_dict(), dict(model.config)
    read = module_tensors(written(layout_name, expected, config), config)
    assert set(read) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (r"encoder\.conv1\.weight", r"encoder\.conv1\.weight"),
        (r"encoder\.downsamples\..*", "encoder"),
        (r"conv2\.weight", r"conv2\.weight"),
    ],
)
def test_tensors_that_tell_no_configuration(removed: str, message: str) -> None:
    tensors = foreign_wan.own_autoencoder(*released("2.1"))
    layout = layout_of(tensors)
    kept = {name: each for name, each in tensors.items() if not re.fullmatch(removed, name)}
    with pytest.raises(ModelError, match=message):
        layout.config(header(kept))


def test_hostile_numbers_of_layers() -> None:
    """Numbers of thousands of digits are no layers; a file that has them is refused by name."""
    tensors = foreign_wan.own_autoencoder(*released("2.1"))
    layout, number = layout_of(tensors), "9" * 5000
    expected = layout.config(header(tensors))
    tensors[f"encoder.downsamples.{number}.residual.6.weight"] = torch.empty(1)
    assert layout.config(header(tensors)) == expected
