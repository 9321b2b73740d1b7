"""One rank matches diffusers' pipeline within 1e-4, from the same noise, in float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims
from longtake.pipelines.models.hunyuan_video.options import TextToVideoOptions
from tests import tiny
from tests.rendering import (
    ALONE,
    Array,
    frames_on_one_rank,
    latents_on_one_rank,
    load_pipeline,
    render,
    request,
)

LONG = "a cat walks slowly on the green grass and the blue dog runs fast on red sand . " * 4

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "a short prompt": dict(prompt="cat"),
    "a prompt longer than the model takes": dict(prompt=LONG),
    "unknown words": dict(prompt="Quixotic Ωmega ~~~ 猫"),
    "true CFG": dict(true_cfg_scale=4.0, negative_prompt="red"),
    "true CFG, a long negative prompt": dict(true_cfg_scale=1.5, negative_prompt=LONG),
    "true CFG, an empty negative prompt": dict(true_cfg_scale=3.0, negative_prompt=""),
    "another shift": dict(flow_shift=2.5),
    "no guidance": dict(guidance_scale=0.0),
    "custom sigmas": dict(sigmas=(1.0, 0.7, 0.35, 0.1), num_inference_steps=4),
    "one step": dict(num_inference_steps=1),
    "one frame": dict(num_frames=1, height=48, width=80),
    "a tall one": dict(num_frames=5, height=96, width=16),
    "more frames than one tile": dict(num_frames=21, height=16, width=32),
    "three videos": dict(num_videos=3, num_frames=5),
    "another seed": dict(seed=2**40 + 7),
}


@cache
def reference(folder: str) -> Any:
    pipeline = HunyuanVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_arguments(resolved: ResolvedRequest) -> dict[str, Any]:
    """Arguments common to diffusers' two pipelines."""
    return dict(
        height=resolved.height,
        width=resolved.width,
        num_frames=resolved.num_frames,
        num_inference_steps=resolved.num_inference_steps,
        sigmas=list(resolved.sigmas) if resolved.sigmas else None,
        true_cfg_scale=TextToVideoOptions.of(resolved).true_cfg_scale or 1.0,
        guidance_scale=resolved.guidance_scale,
        generator=torch.Generator().manual_seed(resolved.seed),
    )


def diffusers_frames(folder: str, own_template: bool, output_type: str, **changes: Any) -> Array:
    """Render a request with diffusers' pipeline."""
    resolved = request(**changes)
    pipeline = reference(folder)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, shift=resolved.flow_shift
    )
    template = (
        dict(prompt_template=tiny.TEMPLATE, max_sequence_length=tiny.MAX_TOKENS)
        if own_template
        else {}
    )
    frames: Array = pipeline(
        prompt=resolved.prompt,
        negative_prompt=resolved.negative_prompt,
        num_videos_per_prompt=resolved.num_videos,
        output_type=output_type,
        **diffusers_arguments(resolved),
        **template,
    ).frames
    return frames


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_frames_match_diffusers(model: str, changes: dict[str, Any]) -> None:
    expected = diffusers_frames(model, True, "np", **changes)
    frames = frames_on_one_rank(model, request(**changes))
    assert expected.std() > 0.01
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-4)


def test_default_template_is_that_of_diffusers(tmp_path: Path) -> None:
    folder = str(tiny.save(tmp_path / "plain", own_template=False))
    expected = diffusers_frames(folder, False, "np", prompt=LONG)
    resolved = request(prompt=LONG, prompt_template=None, max_sequence_length=256)
    np.testing.assert_allclose(frames_on_one_rank(folder, resolved), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        dict(guidance_embeds=False),
        dict(num_attention_heads=5, num_layers=1, num_single_layers=3),
        dict(num_layers=3, num_single_layers=0),
        dict(num_layers=0, num_single_layers=2, num_refiner_layers=2),
        dict(patch_size=1),
        dict(patch_size_t=2, patch_size=1),
    ],
    ids=str,
)
def test_other_architectures(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = str(tiny.save(tmp_path / "other", **changes))
    expected = diffusers_frames(folder, True, "np", num_frames=13)  # divisible by the patch
    frames = frames_on_one_rank(folder, request(num_frames=13))
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_latents_in_float32(model: str, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    latents = render(load_pipeline(model, False, name), request(), ParallelDims(), ALONE)
    assert latents.dtype == torch.float32
    assert (latents != latents.to(dtype).float()).any()
    expected = latents_on_one_rank(model, request())
    np.testing.assert_allclose(latents.numpy(), expected, rtol=0, atol=0.1)
