"""Draw a picture, and animate it with the model that comes with the package.

    python examples/animate.py animated.png

For each prompt the picture, then frames of its video: this is a picture of the README.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw

from longtake import VideoEngine, VideoRequest

PROMPTS = ("moving right", "moving up", "moving left")
FRAMES, ZOOM, GAP_PX = 5, 2, 4


def main() -> None:
    """A purple ring on brown goes three ways."""
    picture = Image.new("RGB", (64, 64), (104, 64, 28))
    ImageDraw.Draw(picture).ellipse((20, 20, 44, 44), outline=(152, 40, 200), width=6)
    with tempfile.TemporaryDirectory() as folder, VideoEngine.from_pretrained("demo-i2v") as engine:
        first = Path(folder, "first.png")
        picture.save(first)
        videos = [
            engine.generate(VideoRequest(prompt=each, image=first, seed=1)) for each in PROMPTS
        ]
    rows = []
    for video in videos:
        frames = video.frames[np.linspace(0, len(video.frames) - 1, FRAMES).round().astype(int)]
        shown = np.concatenate([np.asarray(picture, np.float32)[None] / 255, frames])
        shown = shown.repeat(ZOOM, axis=1).repeat(ZOOM, axis=2)
        gaps = ((0, 0), (0, GAP_PX), (0, GAP_PX), (0, 0))
        rows.append(np.concatenate(np.pad(shown, gaps, constant_values=1), axis=1))
    strip = np.concatenate(rows)[:-GAP_PX, :-GAP_PX]
    iio.imwrite(sys.argv[1], (strip * 255).round().astype(np.uint8))


if __name__ == "__main__":
    main()
