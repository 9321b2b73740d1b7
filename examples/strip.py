"""Render prompts with the model that comes with the package; a strip of frames for each.

    python examples/strip.py strip.png

This is the picture at the top of the README.
"""

from __future__ import annotations

import sys

import imageio.v3 as iio
import numpy as np

from longtake import VideoEngine, VideoRequest

PROMPTS = (
    "a green triangle moving up on a navy background",
    "an orange ring moving left on a black background",
    "RED square, moving right!",
)
FRAMES, ZOOM, GAP_PX = 6, 2, 4


def main() -> None:
    """Render, choose frames evenly, and put them side by side on white."""
    with VideoEngine.from_pretrained("demo") as engine:
        videos = [engine.generate(VideoRequest(prompt=prompt, seed=1)) for prompt in PROMPTS]
    rows = []
    for video in videos:
        frames = video.frames[np.linspace(0, len(video.frames) - 1, FRAMES).round().astype(int)]
        frames = frames.repeat(ZOOM, axis=1).repeat(ZOOM, axis=2)
        gaps = ((0, 0), (0, GAP_PX), (0, GAP_PX), (0, 0))
        rows.append(np.concatenate(np.pad(frames, gaps, constant_values=1), axis=1))
    strip = np.concatenate(rows)[:-GAP_PX, :-GAP_PX]
    iio.imwrite(sys.argv[1], (strip * 255).round().astype(np.uint8))


if __name__ == "__main__":
    main()
