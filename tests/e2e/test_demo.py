"""The model that comes with the package: it renders what was asked for, on any number of ranks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from longtake import VideoEngine, VideoRequest
from longtake.configs.models import bundled
from longtake.engine.tools.differences import psnr_db
from longtake.parallel import ParallelDims
from tests.layouts import layout_name
from tests.quality.demo import REQUIRED, render_and_judge, shares
from tests.quality.judge import Verdict, judge
from tests.quality.prompts import GREEN_TRIANGLE, prompts
from tests.ranks import RankGroups
from tests.rendering import ALONE, decode, latents_of_one, latents_on_ranks, loaded
from training.demo import model
from training.demo.phrases import vocabulary
from training.demo.scenes import Scene, render

FOLDER = bundled()["demo"]


@pytest.fixture(scope="module")
def engine() -> Iterator[VideoEngine]:
    with VideoEngine.from_pretrained() as engine:
        yield engine


def test_it_shows_what_sixteen_prompts_ask_for(engine: VideoEngine) -> None:
    found = shares(render_and_judge(engine, [at * 5 % 64 for at in range(16)]))
    assert all(found[part] >= required for part, required in REQUIRED.items()), found


def test_the_prompts_are_none_that_it_was_trained_on() -> None:
    """Each has words that are in no training phrase."""
    known = set(vocabulary())
    for prompt, _ in prompts():
        words = "".join(sign if sign.isalnum() else " " for sign in prompt.lower()).split()
        assert set(words) - known


@pytest.mark.parametrize(
    "prompt, shows",
    [
        (GREEN_TRIANGLE, Verdict("green", "triangle", "up", "navy")),
        ("a blue ring moving left", Verdict("blue", "ring", "left", None)),
        ("RED square, moving up!", Verdict("red", "square", "up", None)),
        ("grey background; rightwards: purple disc", Verdict("purple", "circle", "right", "gray")),
    ],
)
def test_free_words(engine: VideoEngine, prompt: str, shows: Verdict) -> None:
    """Where a prompt leaves the background out, it may be any."""
    seen = judge(engine.generate(VideoRequest(prompt=prompt, seed=1)).frames)
    assert (seen.color, seen.shape, seen.direction) == (shows.color, shows.shape, shows.direction)
    assert shows.background in (seen.background, None)


@pytest.mark.parametrize("prompt", ["Ωmega 猫 🎬", "?", "-" * 300, "purple", "so " * 400])
def test_any_words_render(engine: VideoEngine, prompt: str) -> None:
    frames = engine.generate(VideoRequest(prompt=prompt, seed=2)).frames
    assert frames.shape == (17, 64, 64, 3)


@pytest.mark.parametrize(
    "dims",
    [
        ParallelDims(ulysses_degree=2),
        ParallelDims(ring_degree=2),
        ParallelDims(ulysses_degree=3),
        ParallelDims(ulysses_degree=4),
        ParallelDims(ring_degree=2, ulysses_degree=2),
    ],
    ids=layout_name,
)
def test_any_number_of_ranks_shows_the_same(
    ranks: RankGroups, engine: VideoEngine, dims: ParallelDims
) -> None:
    asked = engine.resolve(VideoRequest(prompt=GREEN_TRIANGLE, seed=1))
    pipeline = loaded("demo", False)
    answers = ranks.run(dims.world_size, latents_on_ranks, "demo", [asked], dims)
    expected, frames = (
        decode(pipeline, torch.from_numpy(latents), asked, ALONE)[0]
        for latents in (latents_of_one("demo", asked), answers[0][0])
    )
    likeness = [psnr_db(*pair, 1.0) for pair in zip(frames, expected, strict=True)]
    assert min(likeness) >= 50
    assert judge(frames) == judge(expected) == Verdict("green", "triangle", "up", "navy")


def test_the_autoencoder_brings_back_scenes_it_has_not_seen() -> None:
    """The mean of the round trip, 30 dB."""
    vae = AutoencoderKLHunyuanVideo.from_pretrained(FOLDER / "vae").float()
    rng, found = random.Random("scenes of the tests"), []
    for _ in range(8):
        clip = render([Scene.draw(rng)], rng, **model.SIZE)
        with torch.no_grad():
            again = vae.decode(vae.encode(clip * 2 - 1).latent_dist.mean).sample / 2 + 0.5
        found.append(-10 * float((again.clamp(0, 1) - clip).square().mean().log10()))
    assert np.mean(found) >= 30


def test_the_folder_is_small_safe_and_says_how_it_was_trained() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16e6
    assert {path.suffix for path in files} == {".json", ".safetensors", ".yaml"}
    figures = json.loads((FOLDER / "training.json").read_text())
    assert figures["autoencoder_psnr_db"] >= 30
