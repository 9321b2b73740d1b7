"""Names, shapes and dtypes of Wan's transformer against diffusers' class on the meta device."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

from longtake.pipelines.models.wan.configs import TransformerConfig
from longtake.pipelines.models.wan.tensors import FLOAT32_WEIGHTS, UNUSED, transformer_tensors
from tests.unit.pipelines.models.wan.architectures import ARCHITECTURES, PARAMETERS


def module(name: str) -> WanTransformer3DModel:
    with torch.device("meta"):
        return WanTransformer3DModel(**ARCHITECTURES[name])


def tensors(name: str) -> dict[str, tuple[int, ...]]:
    return dict(transformer_tensors(TransformerConfig.model_validate(ARCHITECTURES[name])))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_and_shapes(name: str) -> None:
    found = {key: tuple(each.shape) for key, each in module(name).state_dict().items()}
    assert tensors(name) == found


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_number_of_parameters(name: str, parameters: float) -> None:
    counted = sum(torch.Size(shape).numel() for shape in tensors(name).values())
    assert counted == pytest.approx(parameters, rel=5e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_that_stay_float32(name: str) -> None:
    """The rule of diffusers' loader: a part of the name is a module to keep in float32."""
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    names = [key for key, _ in module(name).named_parameters()]
    expected = {key for key in names if kept & set(key.split("."))}
    assert {key for key in names if FLOAT32_WEIGHTS.search(key)} == expected
    assert expected != set(names)


def test_tensors_that_are_not_used() -> None:
    assert WanTransformer3DModel._keys_to_ignore_on_load_unexpected == ["norm_added_q"]
    assert UNUSED.fullmatch("blocks.0.attn2.norm_added_q.weight")
    assert not any(UNUSED.fullmatch(key) for key in tensors("odd"))
