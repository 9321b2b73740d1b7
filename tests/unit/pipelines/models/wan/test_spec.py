"""What requests for Wan models resolve to."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.resolve.request import resolve
from longtake.errors import RequestError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.wan.options import WanExpertsOptions
from longtake.pipelines.models.wan.spec import WanSpec

T2V, I2V, FLF2V = "wan2.1-t2v-14b", "wan2.1-i2v-14b-480p", "wan2.1-flf2v-14b-720p"
EXPERTS, TI2V = "wan2.2-t2v-a14b", "wan2.2-ti2v-5b"


def spec_of(preset: str) -> WanSpec:
    spec = registry.inspect(Checkpoint.open(preset, configs_only=True), weights=False)
    assert isinstance(spec, WanSpec)
    return spec


def resolved(preset: str, **fields: Any) -> ResolvedRequest:
    return resolve(VideoRequest(prompt="a cat", seed=0, **fields), spec_of(preset))


def test_defaults_of_the_released_code() -> None:
    request = resolved(T2V)
    assert (request.guidance_scale, request.flow_shift) == (5.0, 5.0)
    options = WanExpertsOptions.of(request)
    assert options == WanExpertsOptions(sampler="unipc", sigma_spacing="scheduler")
    assert (request.max_sequence_length, request.decode) == (512, "whole")
    assert request.negative_prompt is not None and request.negative_prompt.startswith("色调艳丽")
    assert spec_of(T2V).num_passes(request) == 2


def test_no_guidance_is_one_pass_without_a_negative_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = resolved(T2V, guidance_scale=1.0)
    assert request.negative_prompt is None
    assert spec_of(T2V).num_passes(request) == 1
    assert not caplog.records
    assert resolved(T2V, guidance_scale=1.0, negative_prompt="blurry").negative_prompt == "blurry"
    assert "no effect with guidance_scale=1" in caplog.text


def test_an_empty_negative_prompt_stays_empty() -> None:
    assert resolved(T2V, negative_prompt="").negative_prompt == ""


@pytest.mark.parametrize(
    ("fields", "scales"),
    [
        ({}, (4.0, 3.0)),
        ({"guidance_scale": 6.0}, (6.0, 6.0)),
        ({"guidance_scale_2": 2.0}, (4.0, 2.0)),
        ({"guidance_scale": 6.0, "guidance_scale_2": 1.0}, (6.0, 1.0)),
        ({"guidance_scale": 1.0}, (1.0, 1.0)),
    ],
    ids=str,
)
def test_scales_of_two_experts(fields: dict[str, Any], scales: tuple[float, float]) -> None:
    request = resolved(EXPERTS, **fields)
    assert (request.guidance_scale, WanExpertsOptions.of(request).guidance_scale_2) == scales


def test_guidance_of_the_low_noise_expert_alone_is_refused() -> None:
    with pytest.raises(RequestError, match="guidance_scale_2=3 with guidance_scale=1"):
        resolved(EXPERTS, guidance_scale=1.0, guidance_scale_2=3.0)


@pytest.mark.parametrize("preset", [T2V, I2V, TI2V])
def test_a_second_scale_needs_two_experts(preset: str) -> None:
    with pytest.raises(RequestError, match=r"guidance_scale_2=3.0 is not an option of wan2\.. *"):
        resolved(preset, guidance_scale_2=3.0)


def test_image_keys_need_512_text_tokens() -> None:
    assert resolved(I2V, max_sequence_length=512).max_sequence_length == 512
    with pytest.raises(RequestError, match="max_sequence_length=256 with a model that has image"):
        resolved(I2V, max_sequence_length=256)
    assert resolved(T2V, max_sequence_length=256).max_sequence_length == 256


@pytest.mark.parametrize("preset", [T2V, I2V, TI2V])
def test_a_last_picture_is_refused(preset: str) -> None:
    with pytest.raises(RequestError, match="last_image="):
        resolved(preset, last_image="last.png")


def test_euler_and_another_shift() -> None:
    request = resolved(T2V, sampler="euler", flow_shift=3.0, num_inference_steps=4)
    assert (WanExpertsOptions.of(request).sampler, request.flow_shift) == ("euler", 3.0)


def test_text_stands_in_cross_attention_alone() -> None:
    spec, request = spec_of(T2V), resolved(T2V)
    assert (spec.text_tokens(request), spec.joint_tokens(request)) == (512, 0)
    assert spec.guidance_fields(guided=True) == {"guidance_scale": 1.5}
    assert spec.guidance_fields(guided=False) == {"guidance_scale": 1.0}


def test_costs_follow_the_request() -> None:
    spec = spec_of(TI2V)
    text, picture = resolved(TI2V), resolved(TI2V, image="cat.png", max_sequence_length=128)
    assert not spec.costs_of(text).per_token_timesteps
    costs = spec.costs_of(picture)
    assert costs.per_token_timesteps and costs.text_keys == 128
    assert not spec_of(I2V).costs_of(resolved(I2V, image="cat.png")).per_token_timesteps
    assert spec_of(I2V).costs.image_keys == 257 and spec_of(FLF2V).costs.image_keys == 514


def test_time_is_not_tiled() -> None:
    with pytest.raises(RequestError, match="decode=framewise with Wan.* use whole or tiled"):
        resolved(T2V, decode="framewise")
