"""Limits of each request field, and the model's defaults and sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from longtake.configs.models import defaults_of
from longtake.configs.request import VideoRequest
from longtake.engine.resolve.request import resolve
from longtake.errors import ModelError, RequestError, one_line
from longtake.pipelines.models.hunyuan_video.configs import TransformerConfig, VaeConfig
from longtake.pipelines.models.hunyuan_video.costs import HunyuanVideoCosts
from longtake.pipelines.models.hunyuan_video.defaults import HunyuanVideoDefaults
from longtake.pipelines.models.hunyuan_video.spec import TILE_SIZE, TILE_STRIDE, HunyuanVideoSpec
from longtake.pipelines.spec import AutoencoderSpec
from longtake.pipelines.text_encoders.configs import ClipTextConfig, LlamaConfig

SPEC = HunyuanVideoSpec(
    num_heads=24,
    head_size=128,
    size_multiple=16,
    frames_multiple=4,
    autoencoder=AutoencoderSpec(
        latent_channels=16,
        spatial_ratio=8,
        temporal_ratio=4,
        tile_size=TILE_SIZE,
        tile_stride=TILE_STRIDE,
    ),
    defaults=HunyuanVideoDefaults(),
    flow_shift=5.0,
    patch=(1, 2, 2),
    costs=HunyuanVideoCosts(TransformerConfig(), VaeConfig(), LlamaConfig(), ClipTextConfig()),
)

OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("prompt", "", "must not be blank"),
    ("prompt", " \n", "must not be blank"),
    ("prompt", "a" * 100_001, "at most 100000"),
    ("prompt", 3, "must be text"),
    ("negative_prompt", "a" * 100_001, "at most 100000"),
    ("height", 0, "at least 1"),
    ("height", 16385, "at most 16384"),
    ("height", 32.5, "whole number"),
    ("width", -16, "at least 1"),
    ("num_frames", 0, "at least 1"),
    ("num_inference_steps", 0, "at least 1"),
    ("num_inference_steps", 10_001, "at most 10000"),
    ("guidance_scale", -0.1, "at least 0"),
    ("guidance_scale", float("nan"), "finite number"),
    ("true_cfg_scale", float("inf"), "finite number"),
    ("flow_shift", 0, "at least 0.01"),
    ("seed", -1, "at least 0"),
    ("seed", True, "must not be true or false"),
    ("num_videos", True, "must not be true or false"),
    ("prompt_template", {"template": "no place", "crop_start": 1}, "must contain {} once"),
    ("prompt_template", {"template": "{} {}", "crop_start": 1}, "must contain {} once"),
    ("prompt_template", {"template": "{x} : {}", "crop_start": 1}, "must contain {} once"),
    ("prompt_template", {"template": "{{}}", "crop_start": 1}, "must contain {} once"),
    ("prompt_template", {"template": "{:>9999}", "crop_start": 1}, "must contain {} once"),
    ("sigmas", [True, 0.5], "must not be true or false"),
    ("max_sequence_length", 0, "at least 1"),
    ("seed", 2**63, "at most"),
    ("fps", 0, "at least 0.1"),
    ("num_videos", 0, "at least 1"),
    ("sigmas", (), "at least 1 value"),
    ("sigmas", (0.5, 0.7), "must fall"),
    ("sigmas", (1.0, 1.0), "must fall"),
    ("sigmas", (1.5,), "at most 1"),
    ("sigmas", (1.0, 0.0), "must be above 0"),
    ("output_type", "pixels", "frames or latents"),
    ("colour", "blue", "is not an option"),
]


@pytest.mark.parametrize(("field", "value", "rule"), OUT_OF_RANGE)
def test_values_out_of_range_are_refused(field: str, value: Any, rule: str) -> None:
    with pytest.raises(RequestError) as caught:
        VideoRequest(**{"prompt": "a cat", field: value})
    text = one_line(caught.value)
    assert text.startswith(field)
    assert rule in text
    assert "\n" not in text
    assert len(text) < 200


def test_defaults_are_the_models() -> None:
    resolved = resolve(VideoRequest(prompt="a cat"), SPEC)
    assert (resolved.height, resolved.width, resolved.num_frames) == (720, 1280, 129)
    assert (resolved.num_inference_steps, resolved.guidance_scale) == (50, 6.0)
    assert resolved.flow_shift == 5.0  # the scheduler's, if the model has no other
    assert resolved.negative_prompt is None
    assert resolved.decode == "tiled"
    assert (resolved.decode_tile_size, resolved.decode_tile_stride) == (TILE_SIZE, TILE_STRIDE)


def test_a_seed_is_drawn_once() -> None:
    seeds = {resolve(VideoRequest(prompt="a"), SPEC).seed for _ in range(20)}
    assert len(seeds) == 20
    assert resolve(VideoRequest(prompt="a", seed=0), SPEC).seed == 0


def test_zero_guidance_is_kept() -> None:
    assert resolve(VideoRequest(prompt="a", guidance_scale=0), SPEC).guidance_scale == 0


def test_the_negative_prompt_of_true_cfg_is_empty_by_default() -> None:
    assert resolve(VideoRequest(prompt="a", true_cfg_scale=4), SPEC).negative_prompt == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(height=100), "height=100 must be a multiple of 16: try 96 or 112"),
        (dict(width=8), "width=8 must be a multiple of 16: try 16"),
        (dict(num_frames=8), "num_frames=8 must be 1 more than a multiple of 4: try 5 or 9"),
        (dict(num_frames=2), "num_frames=2 must be 1 more than a multiple of 4: try 1 or 5"),
        (
            dict(sigmas=(1.0, 0.5), num_inference_steps=3),
            "num_inference_steps=3 with 2 sigmas: there must be one sigma a step",
        ),
    ],
)
def test_values_that_the_model_does_not_support_are_refused(
    changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(RequestError, match="^" + text.replace("(", r"\(")):
        resolve(VideoRequest(prompt="a", **changes), SPEC)


def test_sigmas_set_the_number_of_steps() -> None:
    assert resolve(VideoRequest(prompt="a", sigmas=(0.9, 0.3)), SPEC).num_inference_steps == 2


def test_a_resolved_request_resolves_to_itself() -> None:
    resolved = resolve(VideoRequest(prompt="a", true_cfg_scale=2), SPEC)
    again = resolve(VideoRequest.model_validate_json(resolved.model_dump_json()), SPEC)
    assert again == resolved


FALLBACK = HunyuanVideoDefaults(height=64, dynamic_flow_shift=3)


def test_a_file_of_defaults_may_be_partial(tmp_path: Any) -> None:
    (tmp_path / "longtake.yaml").write_text("width: 96\ntrue_cfg_scale: 2\nnegative_prompt: red\n")
    found = defaults_of("x", tmp_path, FALLBACK)
    assert (found.height, found.width, found.num_frames) == (64, 96, 129)
    assert (found.dynamic_flow_shift, found.true_cfg_scale) == (3, 2)
    resolved = resolve(VideoRequest(prompt="a"), replace(SPEC, defaults=found))
    assert (resolved.negative_prompt, SPEC.num_passes(resolved)) == ("red", 2)


def test_a_released_model_has_a_preset(tmp_path: Any) -> None:
    preset = defaults_of("hunyuanvideo-community/HunyuanVideo", tmp_path, HunyuanVideoDefaults())
    assert (preset.flow_shift, preset.decode, preset.vae_dtype) == (7.0, "tiled", "float16")
    assert defaults_of("someone/else", tmp_path, FALLBACK) is FALLBACK


@pytest.mark.parametrize(
    "text", ["height: tall", "a: [", "colour: blue", "- 1", "guidance_scale_2: 3"]
)
def test_invalid_defaults_of_a_model_are_refused(tmp_path: Any, text: str) -> None:
    (tmp_path / "longtake.yaml").write_text(text)
    with pytest.raises(ModelError, match="longtake.yaml is not a file of model defaults"):
        defaults_of("x", tmp_path, HunyuanVideoDefaults())


def test_a_negative_prompt_without_effect_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    resolve(VideoRequest(prompt="a", negative_prompt="b"), SPEC)
    assert "no effect with true_cfg_scale=1" in caplog.text
    caplog.clear()
    resolve(VideoRequest(prompt="a", negative_prompt="b", true_cfg_scale=2), SPEC)
    assert not caplog.text


def test_a_guidance_scale_without_effect_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    resolve(VideoRequest(prompt="a", guidance_scale=3), SPEC)
    assert not caplog.text
    older = replace(SPEC.costs, transformer=TransformerConfig(guidance_embeds=False))
    resolve(VideoRequest(prompt="a"), replace(SPEC, costs=older))
    assert not caplog.text
    resolve(VideoRequest(prompt="a", guidance_scale=3), replace(SPEC, costs=older))
    assert "guidance_scale=3 has no effect: the transformer embeds no guidance" in caplog.text


@pytest.mark.parametrize(
    ("first", "multiple", "frames", "latent_frames"), [(2, 2, 6, 3), (5, 17, 39, 3), (1, 8, 9, 2)]
)
def test_rules_of_frames(first: int, multiple: int, frames: int, latent_frames: int) -> None:
    autoencoder = replace(SPEC.autoencoder, first_frames=first, temporal_ratio=multiple)
    spec = replace(SPEC, autoencoder=autoencoder, frames_multiple=multiple)
    tiles = dict(decode="whole", seed=0)
    found = resolve(VideoRequest(prompt="a", num_frames=frames, **tiles), spec)
    assert spec.grid(found).shape[2] == latent_frames
    assert autoencoder.video_size(latent_frames, 1, 1)[0] == frames
    close = VideoRequest(prompt="a", seconds=frames / 24 + 0.01, **tiles)
    assert resolve(close, spec).num_frames == frames
    near = f"num_frames={frames + 1} must be .*a multiple of {multiple}: try {frames} or "
    with pytest.raises(RequestError, match=near):
        resolve(VideoRequest(prompt="a", num_frames=frames + 1, **tiles), spec)
    if first > 1:
        with pytest.raises(RequestError, match=f"num_frames=1 must be .*: try {first} or "):
            resolve(VideoRequest(prompt="a", num_frames=1, **tiles), spec)
