"""One rank matches diffusers' Wan pipelines within 1e-4, from the same noise, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.wan_rendering import KINDS, diffusers_render, longtake_render, wan_request

LONG = "a cat walks slowly on the green grass and the blue dog runs fast on red sand . " * 40

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "euler": dict(sampler="euler"),
    "no guidance": dict(guidance_scale=1.0),
    "another shift, five steps": dict(flow_shift=8.0, num_inference_steps=5),
    "odd size, several videos": dict(height=96, width=160, num_frames=5, num_videos=2),
    "one frame": dict(num_frames=1, num_inference_steps=2),
}
PROMPTS: dict[str, dict[str, Any]] = {
    "a short prompt": dict(prompt="cat"),
    "a prompt longer than the model takes": dict(prompt=LONG),
    "entities and spaces": dict(prompt="  the  cat &amp;amp; the dog\n "),
    "no negative prompt": dict(negative_prompt=""),
    "one step": dict(num_inference_steps=1),
    "tiles": dict(height=288, width=320, num_frames=5, num_inference_steps=1, decode="tiled"),
}


def check(folder: str, pictures: tuple[str, ...], changes: dict[str, Any]) -> None:
    """Compare the latents and the frames of a request with diffusers'."""
    resolved = wan_request(folder, pictures, **changes)
    latents, frames = longtake_render(folder, resolved)
    expected = diffusers_render(folder, resolved, pictures, "np")
    assert expected.std() > 0.01
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-4)
    theirs = diffusers_render(folder, resolved, pictures, "latent")
    np.testing.assert_allclose(latents, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (kind, case)
        for kind, pictures in KINDS.items()
        for case in CASES
        # a single frame is not both the first and the last
        if case != "one frame" or "last_image" not in pictures
    ],
)
def test_frames_match_diffusers(wan: Callable[[str], str], kind: str, case: str) -> None:
    check(wan(kind.partition(" ")[0]), KINDS[kind], CASES[case])


@pytest.mark.parametrize("changes", PROMPTS.values(), ids=PROMPTS)
def test_prompts_match_diffusers(wan: Callable[[str], str], changes: dict[str, Any]) -> None:
    check(wan("wan21-t2v"), (), changes)


@pytest.mark.parametrize("kind", ["wan22-t2v", "wan22-i2v"])
@pytest.mark.parametrize("scales", [(4.0, 3.0), (3.5, 1.0), (2.0, 6.0)], ids=str)
def test_two_scales_match_diffusers(
    wan: Callable[[str], str], kind: str, scales: tuple[float, float]
) -> None:
    changes = dict(guidance_scale=scales[0], guidance_scale_2=scales[1], num_inference_steps=5)
    check(wan(kind), KINDS[kind], changes)


def test_linear_spacing_is_the_schedule_of_distilled_models(wan: Callable[[str], str]) -> None:
    """The same levels as sigmas that fall evenly from 1, given by the request."""
    folder = wan("wan21-t2v")
    levels: dict[str, Any] = dict(sigmas=(1.0, 0.75, 0.5, 0.25))
    linear: dict[str, Any] = dict(sigma_spacing="linear", num_inference_steps=4)
    for sampler in ("euler", "unipc"):
        one, _ = longtake_render(folder, wan_request(folder, sampler=sampler, **levels))
        other, _ = longtake_render(folder, wan_request(folder, sampler=sampler, **linear))
        np.testing.assert_array_equal(one, other)
        default = wan_request(folder, sampler=sampler, num_inference_steps=4)
        assert abs(longtake_render(folder, default)[0] - one).max() > 1e-4
