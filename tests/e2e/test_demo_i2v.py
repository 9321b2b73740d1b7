"""The image-to-video demo model: pictures move as prompted and stay recognisable."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtake import VideoEngine, VideoRequest
from longtake.configs.models import bundled
from longtake.engine.tools.differences import psnr_db
from tests.quality.demo import REQUIRED_FOR_PICTURES, animate_and_judge, shares
from tests.quality.judge import judge
from tests.quality.pictures import pictures
from training.demo.phrases import vocabulary

FOLDER = bundled()["demo-i2v"]


@pytest.fixture(scope="module")
def engine() -> Iterator[VideoEngine]:
    with VideoEngine.from_pretrained("demo-i2v") as engine:
        yield engine


def test_eight_pictures_move_as_prompted(engine: VideoEngine) -> None:
    """Each color once, each shape twice; the first frame has 25 dB PSNR to the picture."""
    found = shares(*animate_and_judge(engine, [at * 9 % 32 for at in range(8)]))
    assert all(found[part] >= required for part, required in REQUIRED_FOR_PICTURES.items()), found


def test_one_picture_moves_in_both_directions(engine: VideoEngine, tmp_path: Path) -> None:
    """The shape starts in the middle, so that the picture gives no hint."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[22:42, 22:42] = (224, 32, 32)
    path = tmp_path / "square.png"
    Image.fromarray(pixels).save(path)
    for mode in ("stable", "dynamic"):
        for direction in ("left", "right", "up", "down"):
            request = VideoRequest(prompt=f"moving {direction}", image=path, seed=1, i2v_mode=mode)
            seen = judge(engine.generate(request).frames)
            assert (seen.direction, seen.color) == (direction, "red"), (mode, direction, seen)


def test_prompts_are_not_in_the_training_data() -> None:
    """Six of eight prompts have words that are in no training prompt."""
    known = set(vocabulary())
    unknown = 0
    for _, prompt, _ in pictures()[:8]:
        words = "".join(sign if sign.isalnum() else " " for sign in prompt.lower()).split()
        unknown += bool(set(words) - known)
    assert unknown == 6
    assert len({picture.tobytes() for picture, _, _ in pictures()}) == 32


def test_two_ranks_give_the_same_video(engine: VideoEngine, tmp_path: Path) -> None:
    picture, prompt, _ = pictures()[3]
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    request = VideoRequest(prompt=prompt, image=path, seed=3)
    expected = engine.generate(request).frames
    with VideoEngine.from_pretrained("demo-i2v", devices=2) as two:
        frames = two.generate(request).frames
    likeness = [psnr_db(*pair, 1.0) for pair in zip(frames, expected, strict=True)]
    assert min(likeness) >= 50
    assert judge(frames) == judge(expected)


def test_picture_of_another_shape_renders(engine: VideoEngine, tmp_path: Path) -> None:
    """The model has one size; the picture is resized."""
    rng = random.Random(0)
    smooth = np.array([[[rng.random() for _ in range(3)] for _ in range(4)] for _ in range(3)])
    pixels = Image.fromarray((255 * smooth).astype(np.uint8)).resize((300, 200))
    pixels.save(tmp_path / "photo.jpg", quality=95)
    video = engine.generate(
        VideoRequest(
            prompt="moving up", image=tmp_path / "photo.jpg", seed=0, resize_mode="stretch"
        )
    )
    assert video.frames.shape == (17, 64, 64, 3)
    assert np.isfinite(video.frames).all()


def test_model_folder_is_small_safe_and_documented() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16e6
    assert {path.suffix for path in files} == {".json", ".safetensors", ".yaml"}
    figures = json.loads((FOLDER / "training.json").read_text())
    assert figures["start"] == "demo" and len(figures["stages"]) == 2
    transformer = json.loads((FOLDER / "transformer" / "config.json").read_text())
    assert transformer["image_condition_type"] == "token_replace"
