"""The autoencoder's configuration and tensors, against the module that diffusers builds."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from pydantic import ValidationError

from longtake.pipelines.models.wan.codec import tiling
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.codec.tensors import vae_tensors
from tests.wan_coding import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tensors(name: str) -> None:
    settings = ARCHITECTURES[name]
    with torch.device("meta"):
        model = AutoencoderKLWan(**settings)
    tensors = list(vae_tensors(VaeConfig.model_validate(settings)))
    found = {name: tuple(weights.shape) for name, weights in model.state_dict().items()}
    assert dict(tensors) == found
    assert len(tensors) == len(found)


def test_defaults_are_those_of_diffusers() -> None:
    parameters = inspect.signature(AutoencoderKLWan.__init__).parameters
    for name, value in VaeConfig().model_dump(exclude={"quantization_config"}).items():
        default = parameters[name].default
        assert value == (tuple(default) if isinstance(default, list) else default), name


def test_default_tiles_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        model: Any = AutoencoderKLWan(base_dim=4)
    for name, values in (("min", tiling.TILE_SIZE), ("stride", tiling.TILE_STRIDE)):
        for axis, value in zip(("height", "width"), values[1:], strict=True):
            assert getattr(model, f"tile_sample_{name}_{axis}") == value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperal_downsample": [True, True]}, "one shorter than dim_mult"),
        ({"temperal_downsample": [True, True, True]}, "must be true twice"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial=16 must be 8: patch_size, doubled"),
        ({"patch_size": 2, "scale_factor_spatial": 16}, "out_channels must be 12: 3 x patch_size"),
        ({"z_dim": 48}, "must have z_dim=48 values"),
        ({"latents_std": [0.0] * 16}, "greater than 0"),
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"is_residual": True, "dim_mult": [1, 9, 4, 4]}, "a residual shortcut cannot group"),
        ({"quantization_config": {}}, "quantization_config"),
    ],
    ids=str,
)
def test_unsupported_configurations_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        VaeConfig.model_validate(changes)
