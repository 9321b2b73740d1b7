"""Prompts in words and orders on which the demo model was not trained."""

from __future__ import annotations

from tests.quality.judge import Verdict
from training.demo.scenes import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES

GREEN_TRIANGLE = "a green triangle moving up on a navy background"
"""The prompt of the README."""

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
    """64 prompts with expected verdicts; the index of a prompt is its seed.

    Each color, shape, direction and background occurs equally often, and no scene twice.
    """
    cases = []
    for at in range(64):
        color = list(COLORS)[at % 8]
        shape = SHAPES[(at // 8) % 4]
        direction = list(DIRECTIONS)[(at + at // 8) % 4]
        background = list(BACKGROUNDS)[(at // 2 + at // 16) % 4]
        words = _PHRASES[(at + at // 8) % 8].format(
            color=color, shape=shape, direction=direction, background=background
        )
        words = words.upper() if "BIG" in words else words
        cases.append((words, Verdict(color, shape, direction, background)))
    return cases
