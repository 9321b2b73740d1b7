"""One rank animates a picture as diffusers' own pipeline does: 1e-4, in float32."""

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
from longtake.pipelines.base import ImageToVideoPipeline
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.picture import Pixels
from longtake.pipelines.quiet import quiet_libraries
from longtake.pipelines.rendering import RenderRun, render_latents
from tests import tiny
from tests.rendering import ALONE, ONE_RANK, Array, decode, image_request, loaded
from tests.unit.pipelines.test_pipeline_parity import LONG, diffusers_arguments

CONDITIONINGS = ("token_replace", "latent_concat")

CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a short prompt": dict(prompt="cat"),
    "unknown words": dict(prompt="Quixotic Ωmega ~~~ 猫"),
    "true CFG": dict(true_cfg_scale=4.0, negative_prompt="red"),
    "true CFG, an empty negative prompt": dict(true_cfg_scale=3.0, negative_prompt=""),
    "another shift": dict(flow_shift=2.5),
    "custom sigmas": dict(sigmas=(1.0, 0.7, 0.35, 0.1), num_inference_steps=4),
    "a tall one": dict(num_frames=5, height=96, width=16),
    "more frames than one tile": dict(num_frames=21, height=16, width=32),
    "three videos": dict(num_videos=3, num_frames=5),  # of two diffusers takes the wrong words
}


@cache
def reference(folder: str) -> Any:
    with quiet_libraries():
        from diffusers import HunyuanVideoImageToVideoPipeline

        pipeline = HunyuanVideoImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(height: int, width: int) -> Pixels:
    """Noise over a slope, so that a shift of it would be seen."""
    noise = np.random.default_rng(5).integers(0, 128, (height, width, 3))
    slope = np.linspace(0, 127, width)[None, :, None].astype(np.int64)
    return (noise + slope).astype(np.uint8)


def diffusers_gives(
    folder: str, asked: ResolvedRequest, shown: Pixels, output_type: str, **changes: Any
) -> Array:
    """What diffusers' own pipeline renders for a request."""
    pipeline = reference(folder)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, shift=asked.flow_shift
    )
    template = {}
    if asked.prompt_template is not None:
        place = {"image_emb_start": 1, "image_emb_end": 1 + tiny.IMAGE_TOKENS}
        template["prompt_template"] = {
            **asked.prompt_template.model_dump(),
            **place,
            "image_emb_len": tiny.IMAGE_TOKENS,
        }
    given: Any = pipeline(
        image=[Image.fromarray(shown)] * asked.num_videos,
        prompt=[asked.prompt] * asked.num_videos,
        negative_prompt=None
        if asked.negative_prompt is None
        else [asked.negative_prompt] * asked.num_videos,
        output_type=output_type,
        max_sequence_length=asked.max_sequence_length,
        **diffusers_arguments(asked),
        **template,
        **changes,
    ).frames
    return np.asarray(given)


def longtake_gives(folder: str, asked: ResolvedRequest, shown: Pixels) -> tuple[Array, Array]:
    """The latents, and the frames of all videos."""
    pipeline = loaded(folder, False)
    latents = render_latents(RenderRun(pipeline, asked, ONE_RANK, ALONE, picture=shown))
    dropped = registry.inspect(Checkpoint.open(folder)).dropped_frames
    return latents.numpy(), decode(pipeline, latents, asked, ALONE, dropped)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_frames_are_those_of_diffusers(
    animators: dict[str, str], conditioning: str, changes: dict[str, Any]
) -> None:
    folder, asked = animators[conditioning], image_request(**changes)
    if asked.num_frames <= 5 and conditioning == "latent_concat":
        asked = asked.model_copy(update={"num_frames": 9})
    shown = picture(40, 56)
    expected = diffusers_gives(folder, asked, shown, "np")
    latents, frames = longtake_gives(folder, asked, shown)
    assert expected.std() > 0.01
    assert frames.shape[1] == asked.num_frames - 4 * (conditioning == "latent_concat")
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-4)
    theirs = diffusers_gives(folder, asked, shown, "latent")
    np.testing.assert_allclose(latents[:, :, -theirs.shape[2] :], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_dynamic_mode_begins_with_noise_alone(
    animators: dict[str, str], conditioning: str
) -> None:
    """diffusers always mixes: it is given what the mixture makes noise of."""
    folder, shown = animators[conditioning], picture(32, 48)
    asked = image_request(i2v_mode="dynamic", flow_shift=17.0)
    pipeline = loaded(folder, False)
    assert isinstance(pipeline, ImageToVideoPipeline)
    grid = pipeline.spec.grid(asked)
    noise = grid.noise(asked.seed)
    latents, _ = longtake_gives(folder, asked, shown)
    stable, _ = longtake_gives(folder, asked.model_copy(update={"i2v_mode": "stable"}), shown)
    assert abs(stable - latents).max() > 1e-4
    pixels = torch.from_numpy(shown).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    image = pipeline.encode_image(pixels, asked, ALONE)
    share = torch.tensor(0.999)
    expected = diffusers_gives(
        folder, asked, shown, "latent", latents=(noise - image * (1 - share)) / share
    )
    np.testing.assert_allclose(latents[:, :, -expected.shape[2] :], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 48), (300, 20), (20, 300), (1, 1), (3, 1)], ids=str)
def test_pictures_of_any_shape(animators: dict[str, str], size: tuple[int, int]) -> None:
    folder, shown = animators["token_replace"], picture(*size)
    asked = image_request(num_inference_steps=1)
    expected = diffusers_gives(folder, asked, shown, "np")
    np.testing.assert_allclose(longtake_gives(folder, asked, shown)[1], expected, atol=1e-4)


@pytest.mark.parametrize("prompt", [LONG, LONG[: len(LONG) // 2]], ids=["cut", "whole"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_folder_of_diffusers_takes_its_template(
    tmp_path: Path, conditioning: str, prompt: str
) -> None:
    """With as many tokens of the picture as the released model's; and a prompt that is cut off."""
    folder = str(tiny.save_image_to_video(tmp_path / "plain", conditioning, own_template=False))
    asked = image_request(
        prompt=prompt * 4,
        prompt_template=None,
        max_sequence_length=120,
        true_cfg_scale=2.0,
        negative_prompt="red " * 60,
    )
    shown = picture(96, 96)
    expected = diffusers_gives(folder, asked, shown, "np")
    np.testing.assert_allclose(longtake_gives(folder, asked, shown)[1], expected, atol=1e-4)
