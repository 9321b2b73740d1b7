"""Render with the bundled models and draw a strip of frames for each video.

    python examples/strip.py docs/strip.png docs/animated.png

Writes the pictures of the README and docs/: text-to-video, and image-to-video from a drawn picture.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw

from longtake import VideoEngine, VideoRequest
from longtake.engine.media.arrays import Array

PROMPTS = (
    "a green triangle moving up on a navy background",
    "an orange ring moving left on a black background",
    "RED square, moving right!",
)
MOTIONS = ("moving right", "moving up", "moving left")
FRAMES, ZOOM, GAP_PX = 6, 2, 4


def main() -> None:
    """Render with both models and write one strip per model."""
    with VideoEngine.from_pretrained("demo") as engine:
        videos = [engine.generate(VideoRequest(prompt=prompt, seed=1)) for prompt in PROMPTS]
    write(sys.argv[1], [evenly_spaced(video.frames, FRAMES) for video in videos])
    ring = Image.new("RGB", (64, 64), (104, 64, 28))
    ImageDraw.Draw(ring).ellipse((20, 20, 44, 44), outline=(152, 40, 200), width=6)
    with tempfile.TemporaryDirectory() as folder, VideoEngine.from_pretrained("demo-i2v") as engine:
        first = Path(folder, "first.png")
        ring.save(first)
        requests = [VideoRequest(prompt=motion, image=first, seed=1) for motion in MOTIONS]
        videos = [engine.generate(request) for request in requests]
    picture = np.asarray(ring, np.float32)[None] / 255
    write(
        sys.argv[2],
        [np.concatenate([picture, evenly_spaced(v.frames, FRAMES - 1)]) for v in videos],
    )


def evenly_spaced(frames: Array, count: int) -> Array:
    """Some of the frames, evenly spaced, including the first and the last."""
    some: Array = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    return some


def write(path: str, videos: Sequence[Array]) -> None:
    """Write an image with one row of frames per video, on white."""
    gaps = ((0, 0), (0, GAP_PX), (0, GAP_PX), (0, 0))
    rows = []
    for frames in videos:
        large = frames.repeat(ZOOM, axis=1).repeat(ZOOM, axis=2)
        rows.append(np.concatenate(np.pad(large, gaps, constant_values=1), axis=1))
    strip = np.concatenate(rows)[:-GAP_PX, :-GAP_PX]
    iio.imwrite(path, (strip * 255).round().astype(np.uint8))


if __name__ == "__main__":
    main()
