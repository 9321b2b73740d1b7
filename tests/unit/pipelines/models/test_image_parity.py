"""Image to video on one rank matches diffusers' pipeline within 1e-4, in float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from longtake.configs.request import ResolvedRequest
from longtake.pipelines import registry
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.quiet import quiet_libraries
from longtake.pipelines.models.hunyuan_video.options import HunyuanVideoOptions
from longtake.pipelines.runtime.render_run import RenderRun
from longtake.pipelines.runtime.rendering import render_latents
from tests import tiny
from tests.rendering import ALONE, ONE_RANK, Array, decode, image_request, load_pipeline
from tests.unit.pipelines.models.test_pipeline_parity import LONG, diffusers_arguments

CONDITIONINGS = ("token_replace", "latent_concat")

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "a short prompt": dict(prompt="cat"),
    "unknown words": dict(prompt="Quixotic Ωmega ~~~ 猫"),
    "true CFG": dict(true_cfg_scale=4.0, negative_prompt="red"),
    "true CFG, an empty negative prompt": dict(true_cfg_scale=3.0, negative_prompt=""),
    "another shift": dict(flow_shift=2.5),
    "custom sigmas": dict(sigmas=(1.0, 0.7, 0.35, 0.1), num_inference_steps=4),
    "a tall one": dict(num_frames=5, height=96, width=16),
    "more frames than one tile": dict(num_frames=21, height=16, width=32),
    "three videos": dict(num_videos=3, num_frames=5),  # with two, diffusers mixes up the prompts
}


@cache
def reference(folder: str) -> Any:
    with quiet_libraries():
        from diffusers import HunyuanVideoImageToVideoPipeline

        pipeline = HunyuanVideoImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(height: int, width: int) -> Pixels:
    """Noise on a gradient, so that a shifted picture differs."""
    noise = np.random.default_rng(5).integers(0, 128, (height, width, 3))
    slope = np.linspace(0, 127, width)[None, :, None].astype(np.int64)
    return (noise + slope).astype(np.uint8)


def diffusers_render(
    folder: str, resolved: ResolvedRequest, image_pixels: Pixels, output_type: str, **changes: Any
) -> Array:
    """Render a request with diffusers' pipeline."""
    pipeline = reference(folder)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, shift=resolved.flow_shift
    )
    template, options = {}, HunyuanVideoOptions.of(resolved)
    if options.prompt_template is not None:
        place = {"image_emb_start": 1, "image_emb_end": 1 + tiny.IMAGE_TOKENS}
        template["prompt_template"] = {
            **options.prompt_template.model_dump(),
            **place,
            "image_emb_len": tiny.IMAGE_TOKENS,
        }
    frames: Any = pipeline(
        image=[Image.fromarray(image_pixels)] * resolved.num_videos,
        prompt=[resolved.prompt] * resolved.num_videos,
        negative_prompt=None
        if resolved.negative_prompt is None
        else [resolved.negative_prompt] * resolved.num_videos,
        output_type=output_type,
        max_sequence_length=resolved.max_sequence_length,
        **diffusers_arguments(resolved),
        **template,
        **changes,
    ).frames
    return np.asarray(frames)


def longtake_render(
    folder: str, resolved: ResolvedRequest, image_pixels: Pixels
) -> tuple[Array, Array]:
    """Render a request; returns the latents and the frames of all videos."""
    pipeline = load_pipeline(folder, False)
    latents = render_latents(
        RenderRun(pipeline, resolved, ONE_RANK, ALONE, pictures={"image": image_pixels})
    )
    dropped = registry.inspect(Checkpoint.open(folder)).dropped_frames
    return latents.numpy(), decode(pipeline, latents, resolved, ALONE, dropped)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_frames_match_diffusers(
    animators: dict[str, str], conditioning: str, changes: dict[str, Any]
) -> None:
    folder, resolved = animators[conditioning], image_request(**changes)
    if resolved.num_frames <= 5 and conditioning == "latent_concat":
        resolved = resolved.model_copy(update={"num_frames": 9})
    image_pixels = picture(40, 56)
    expected = diffusers_render(folder, resolved, image_pixels, "np")
    latents, frames = longtake_render(folder, resolved, image_pixels)
    assert expected.std() > 0.01
    assert frames.shape[1] == resolved.num_frames - 4 * (conditioning == "latent_concat")
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-4)
    theirs = diffusers_render(folder, resolved, image_pixels, "latent")
    np.testing.assert_allclose(latents[:, :, -theirs.shape[2] :], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_dynamic_mode_starts_from_pure_noise(animators: dict[str, str], conditioning: str) -> None:
    """diffusers always blends in the picture; its input is chosen so that the result is noise."""
    folder, image_pixels = animators[conditioning], picture(32, 48)
    resolved = image_request(i2v_mode="dynamic", flow_shift=17.0)
    pipeline = load_pipeline(folder, False)
    grid = pipeline.spec.grid(resolved)
    noise = grid.noise(resolved.seed)
    latents, _ = longtake_render(folder, resolved, image_pixels)
    stable, _ = longtake_render(
        folder, resolved.model_copy(update={"i2v_mode": "stable"}), image_pixels
    )
    assert abs(stable - latents).max() > 1e-4
    pixels = torch.from_numpy(image_pixels).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    image = pipeline.encode_pictures({"image": pixels}, resolved, ALONE)["image"]
    share = torch.tensor(0.999)
    expected = diffusers_render(
        folder, resolved, image_pixels, "latent", latents=(noise - image * (1 - share)) / share
    )
    np.testing.assert_allclose(latents[:, :, -expected.shape[2] :], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 48), (300, 20), (20, 300), (1, 1), (3, 1)], ids=str)
def test_pictures_of_any_shape(animators: dict[str, str], size: tuple[int, int]) -> None:
    folder, image_pixels = animators["token_replace"], picture(*size)
    resolved = image_request(num_inference_steps=1)
    expected = diffusers_render(folder, resolved, image_pixels, "np")
    np.testing.assert_allclose(
        longtake_render(folder, resolved, image_pixels)[1], expected, atol=1e-4
    )


@pytest.mark.parametrize("prompt", [LONG, LONG[: len(LONG) // 2]], ids=["truncated", "whole"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_default_template_is_that_of_diffusers(
    tmp_path: Path, conditioning: str, prompt: str
) -> None:
    """With as many picture tokens as the released model, and a truncated prompt."""
    folder = str(tiny.save_image_to_video(tmp_path / "plain", conditioning, own_template=False))
    resolved = image_request(
        prompt=prompt * 4,
        prompt_template=None,
        max_sequence_length=120,
        true_cfg_scale=2.0,
        negative_prompt="red " * 60,
    )
    image_pixels = picture(96, 96)
    expected = diffusers_render(folder, resolved, image_pixels, "np")
    np.testing.assert_allclose(
        longtake_render(folder, resolved, image_pixels)[1], expected, atol=1e-4
    )
