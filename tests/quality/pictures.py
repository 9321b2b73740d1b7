"""Pictures and prompts on which the image-to-video demo model was not trained."""

from __future__ import annotations

import random

import numpy as np

from longtake.pipelines.codec.picture import Pixels
from tests.quality.judge import Verdict
from training.demo import model
from training.demo.scenes import (
    ANY_TRAVEL_PX,
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    SHAPES,
    Scene,
    render,
)

_PHRASES = (
    "moving {direction}",
    "Please let it wander {direction}, slowly",
    "the {shape} floats {direction} through the picture",
    "{direction}!",
    "cinematic: everything heads {direction}, camera fixed",
    "MAKE THIS ROLL {direction} NOW",
    "a calm shot (4k) in which that {color} {shape} is pushed {direction}",
    "motion={direction}; style=flat",
)


def pictures() -> list[tuple[Pixels, str, Verdict]]:
    """32 pictures with prompts and expected verdicts.

    Each color, shape, direction and background occurs equally often.
    """
    cases = []
    for at in range(32):
        scene = Scene(
            list(COLORS)[at % 8],
            SHAPES[(at // 8) % 4],
            list(DIRECTIONS)[(at + at // 8) % 4],
            list(BACKGROUNDS)[(at // 2 + at // 16) % 4],
        )
        clip = render([scene], random.Random(f"picture {at}"), ANY_TRAVEL_PX, **model.SIZE)
        first = clip[0, :, 0].permute(1, 2, 0).mul(255).round().numpy().astype(np.uint8)
        words = _PHRASES[(at + at // 8) % 8].format(**vars(scene))
        words = words.upper() if "MAKE" in words else words
        cases.append((first, words, Verdict(**vars(scene))))
    return cases
