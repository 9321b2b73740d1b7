"""Chunks of tokens: what treats each token on its own need not treat all of them at once."""

from __future__ import annotations

import itertools
import math

TOKENS_PER_CHUNK = 8192
"""Tokens of a chunk, over all videos: rows enough for a matrix product to keep a GPU busy. A block
of width 3,072 that widens tokens nine times takes 0.4 GiB for a chunk in bfloat16."""


def chunks_of(num_tokens: int, tokens_per_chunk: int = TOKENS_PER_CHUNK) -> list[slice]:
    """Slices of the tokens, in order: as few as possible, and of sizes that differ by one at most.

    Args:
        num_tokens: Number of tokens; with 0 there is one empty slice.
        tokens_per_chunk: Largest size of a slice, at least 1.
    """
    count = max(1, math.ceil(num_tokens / max(1, tokens_per_chunk)))
    edges = [number * num_tokens // count for number in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def largest_chunk(num_tokens: int, tokens_per_chunk: int = TOKENS_PER_CHUNK) -> int:
    """Size of the largest of these slices."""
    return math.ceil(num_tokens / len(chunks_of(num_tokens, tokens_per_chunk)))
