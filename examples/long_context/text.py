"""Makes a text in which things are put somewhere, and asked for many lines later.

python -m examples.long_context.text corpus.txt

A model predicts the answers only if it attends that far back. The same arguments give the same
bytes on every machine.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

NAMES = ("Ada", "Bo", "Chen", "Dalia", "Emeka", "Farah", "Goran", "Hana")
COLORS = ("amber", "black", "copper", "green", "ivory", "purple", "red", "silver")
THINGS = ("bell", "book", "coin", "compass", "key", "lamp", "map", "ring")
PLACES = ("attic", "barn", "cellar", "garden", "harbor", "kitchen", "library", "tower")
SHORTEST, LONGEST = 20, 400
"""Lines of a story."""


def make_text(num_bytes: int, seed: int = 0) -> bytes:
    """Stories, separated by empty lines, cut to ``num_bytes`` bytes of ASCII."""
    draw = random.Random(seed)
    text = bytearray()
    while len(text) < num_bytes:
        text += "".join(_story(draw)).encode() + b"\n"
    return bytes(text[:num_bytes])


def _story(draw: random.Random) -> Iterator[str]:
    """The lines of one story."""
    places: dict[str, str] = {}
    for _ in range(SHORTEST + int(draw.random() * (LONGEST - SHORTEST))):
        thing = f"{_pick(draw, COLORS)} {_pick(draw, THINGS)}"
        if thing in places and draw.random() < 0.5:
            yield f"Where is the {thing}? In the {places[thing]}.\n"
        else:
            places[thing] = _pick(draw, PLACES)
            yield f"{_pick(draw, NAMES)} puts the {thing} in the {places[thing]}.\n"


def _pick(draw: random.Random, words: Sequence[str]) -> str:
    """One of the words; only ``random()`` is the same in every version of Python."""
    return words[int(draw.random() * len(words))]


def main() -> None:
    """Write a text."""
    parser = argparse.ArgumentParser(description="Make a text for train.py.")
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("--num-bytes", type=int, default=1_000_000, help="size of the file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the stories")
    options = parser.parse_args()
    if options.num_bytes < 1:
        parser.error(f"--num-bytes {options.num_bytes} must be at least 1")
    try:
        options.path.write_bytes(make_text(options.num_bytes, options.seed))
    except OSError as error:
        parser.error(f"{options.path} cannot be written: {error.strerror}")
    print(f"{options.path}: {options.num_bytes} bytes")


if __name__ == "__main__":
    main()
