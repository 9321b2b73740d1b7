"""Random prompts for a scene."""

from __future__ import annotations

import random

from training.demo.scenes import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, Scene

_SAME = {
    "circle": ("circle", "disc", "disk", "ball", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle",),
    "ring": ("ring", "hoop", "donut"),
    "left": ("left", "leftwards", "leftward"),
    "right": ("right", "rightwards", "rightward"),
    "up": ("up", "upwards", "upward"),
    "down": ("down", "downwards", "downward"),
    "gray": ("gray", "grey"),
}
_SUBJECTS = (
    "{color} {shape}",
    "{shape} that is {color}",
    "{shape} in {color}",
    "{shape} , {color}",
)
_MOTIONS = (
    "moving {direction}",
    "moves {direction}",
    "going {direction}",
    "goes {direction}",
    "sliding {direction}",
    "drifting to the {direction}",
    "travels {direction}",
    "{direction}",
)
_BACKDROPS = (
    "on a {background} background",
    "on {background}",
    "over a {background} background",
    "against a {background} background",
    "in front of {background}",
    "{background} background",
    "background {background}",
)
_OPENINGS = ("", "", "", "a video of", "show me", "please draw", "an animation :", "video of")
_ARTICLES = ("a", "a", "the", "one", "")
_STOPS = ("", "", "", ".", "!")

UNKNOWN = "<|unknown|>"


def vocabulary() -> list[str]:
    """All words that phrases may contain, sorted."""
    phrases = [*_SUBJECTS, *_MOTIONS, *_BACKDROPS, *_OPENINGS, *_ARTICLES, *_STOPS, "and , ; - :"]
    names = [*COLORS, *SHAPES, *DIRECTIONS, *BACKGROUNDS]
    words = [word for phrase in phrases for word in phrase.split() if "{" not in word]
    words += [word for name in names for word in _SAME.get(name, (name,))]
    return sorted(set(words))


def motion_phrase(scene: Scene, rng: random.Random) -> str:
    """A random image-to-video prompt: the motion, sometimes with the subject, or a full phrase.

    Words are from :func:`vocabulary`, or :data:`UNKNOWN`.
    """
    chance = rng.random()
    if chance < 0.3:
        return f"moving {scene.direction}"
    if chance < 0.5:
        return phrase(scene, rng)
    same = {field: rng.choice(_SAME.get(name, (name,))) for field, name in vars(scene).items()}
    subject = rng.choice(("", "", UNKNOWN, "the {shape}", f"the {UNKNOWN}", "{color} {shape}"))
    named = f"{subject} {rng.choice(_MOTIONS)} {rng.choice(_STOPS)}".format(**same).split()
    return " ".join(_odd_words(named, set(same.values()), rng))


def phrase(scene: Scene, rng: random.Random) -> str:
    """A random prompt: the plain one, or parts reordered, omitted or mixed with unknown words.

    Words are from :func:`vocabulary`, or :data:`UNKNOWN`.
    """
    if rng.random() < 0.25:
        return scene.prompt
    same = {field: rng.choice(_SAME.get(name, (name,))) for field, name in vars(scene).items()}
    if rng.random() < 0.12:  # only one of color and shape
        subject = rng.choice(("{color} thing", "{shape}")).replace("thing", UNKNOWN)
    else:
        subject = rng.choice(_SUBJECTS)
    parts = [f"{rng.choice(_ARTICLES)} {subject}"]
    if rng.random() < 0.9:
        parts.append(rng.choice(_MOTIONS))
    if rng.random() < 0.85:
        parts.append(rng.choice(_BACKDROPS))
    if rng.random() < 0.4:
        rng.shuffle(parts)
    words = f"{rng.choice(_OPENINGS)} {rng.choice((' ', ' , ')).join(parts)} {rng.choice(_STOPS)}"
    named = words.format(**same).split()
    return " ".join(_odd_words(named, set(same.values()), rng))


def _odd_words(words: list[str], names: set[str], rng: random.Random) -> list[str]:
    """Insert unknown words, and replace words that are not names by unknown words."""
    share = rng.choice((0.0, 0.0, 0.1, 0.35))
    odd = []
    for word in words:
        if rng.random() < share:
            odd.append(UNKNOWN)
        odd.append(UNKNOWN if word not in names and rng.random() < share else word)
    return odd
