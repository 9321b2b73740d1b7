"""Prompts in words and orders that the demo model was not trained on, and what each must show."""

from __future__ import annotations

from tests.quality.judge import Verdict
from training.demo.scenes import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES

GREEN_TRIANGLE = "a green triangle moving up on a navy background"
"""In the words of the README."""

_PHRASES = (
    "there is a {color} {shape}, it floats {direction}, and the wall behind it is {background}",
    "{background} backdrop with one {color} {shape} heading {direction}",
    "Look! A {color} {shape} flies slowly {direction} across {background} paper",
    "I would like the {shape} to be {color} and to run {direction} over {background}, thanks",
    "{direction}: this is where a {color} {shape} wanders, {background} all around it",
    "background={background}; shape={shape}; colour={color}; direction={direction}",
    "A BIG {color} {shape} ROLLS {direction}, BEHIND IT EVERYTHING IS {background}!!",
    "cinematic shot (4k): {shape}, very {color}, pushed {direction} in a {background} room",
)


def prompts() -> list[tuple[str, Verdict]]:
    """64 prompts, each with its seed's place in the list; every color, shape, direction and
    background equally often, and no two scenes alike."""
    asked = []
    for at in range(64):
        color = list(COLORS)[at % 8]
        shape = SHAPES[(at // 8) % 4]
        direction = list(DIRECTIONS)[(at + at // 8) % 4]
        background = list(BACKGROUNDS)[(at // 2 + at // 16) % 4]
        words = _PHRASES[(at + at // 8) % 8].format(
            color=color, shape=shape, direction=direction, background=background
        )
        words = words.upper() if "BIG" in words else words
        asked.append((words, Verdict(color, shape, direction, background)))
    return asked
