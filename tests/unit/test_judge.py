"""The judge of the demo model's videos, on drawn scenes with known answers, and on wrong ones."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from tests.quality.judge import Array, Verdict, judge
from training.demo.scenes import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, Scene, render


def drawn(scene: Scene, seed: int = 0) -> Array:
    video = render([scene], random.Random(seed), frames=17, height=64, width=64)[0]
    frames: Array = video.permute(1, 2, 3, 0).numpy()
    return frames


def blurred(frames: Array, far: int) -> Array:
    """As an autoencoder may leave it: soft, over so many pixels either way, and noisy."""
    shifts = list(itertools.product(range(-far, far + 1), repeat=2))
    soft = sum(np.roll(frames, shift, axis=(1, 2)) for shift in shifts) / len(shifts)
    noise = np.random.default_rng(0).normal(0, 0.02, frames.shape)
    return (soft + noise).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("soft", [False, True], ids=["sharp", "soft"])
def test_every_scene_is_read_off_its_pixels(soft: bool) -> None:
    scenes = itertools.product(COLORS, SHAPES, DIRECTIONS, BACKGROUNDS)
    for seed, names in enumerate(scenes):
        frames = drawn(Scene(*names), seed)
        assert judge(blurred(frames, 1) if soft else frames) == Verdict(*names)


def test_shapes_that_are_very_soft() -> None:
    """Of some, the color is lost by then."""
    for seed, (color, shape, background) in enumerate(
        itertools.product(COLORS, SHAPES, BACKGROUNDS)
    ):
        scene = Scene(color, shape, "left", background)
        verdict = judge(blurred(drawn(scene, seed), 2))
        assert (verdict.shape, verdict.direction) == (shape, "left"), scene


SCENE = Scene("green", "triangle", "up", "navy")


def test_a_blank_video() -> None:
    frames = drawn(SCENE)
    assert judge(np.broadcast_to(frames[:, :1, :1], frames.shape)).blank
    frames[9] = frames[9, 0, 0]  # one frame without the shape
    assert judge(frames).blank


def test_colors_that_have_no_name_here() -> None:
    pink, white = (1, 0.6, 0.8), (1, 1, 1)
    green = drawn(SCENE)[..., 1:2] > 0.4
    verdict = judge(np.where(green, pink, white))
    assert verdict == Verdict(None, "triangle", "up", None)


def test_a_static_video() -> None:
    frames = drawn(SCENE)
    verdict = judge(np.repeat(frames[:1], 17, axis=0))
    assert verdict == Verdict("green", "triangle", None, "navy", static=True)


def test_the_way_back() -> None:
    assert judge(drawn(SCENE)[::-1]).direction == "down"
    there_and_back = np.concatenate([drawn(SCENE)[::2], drawn(SCENE)[::-2]])
    assert judge(there_and_back).direction is None


def test_a_slanting_way() -> None:
    frames = np.stack([np.roll(frame, 2 * at, axis=1) for at, frame in enumerate(drawn(SCENE))])
    assert judge(frames).direction is None


def test_noise_shows_nothing() -> None:
    noise = np.random.default_rng(0).random((17, 96, 96, 3), dtype=np.float32)
    verdict = judge(noise)
    assert verdict.direction is None and verdict.shape in (None, "square")


def test_two_colors_and_two_shapes_are_told_apart() -> None:
    """Half of a video's frames wrong: the verdict is not the right one in every part."""
    other = Scene("orange", "ring", "down", "navy")
    frames = np.concatenate([drawn(SCENE)[:8], drawn(other)[8:]])
    assert judge(frames) != Verdict("green", "triangle", "up", "navy")
