"""Chunks of tokens."""

from __future__ import annotations

import pytest
import torch

from longtake.pipelines.chunks import chunks_of, largest_chunk
from longtake.pipelines.tokens import token_chunks


@pytest.mark.parametrize("most", [1, 3, 7, 100])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 8, 20, 21])
def test_chunks_cover_all_tokens_evenly(num_tokens: int, most: int) -> None:
    chunks = chunks_of(num_tokens, most)
    sizes = [each.stop - each.start for each in chunks]
    assert [row for each in chunks for row in range(num_tokens)[each]] == list(range(num_tokens))
    assert max(sizes) == largest_chunk(num_tokens, most) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(chunks) == max(1, -(-num_tokens // most))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("lengths", [(9,), (6, 3), (0, 4), (5, 0), (0, 0), (8, 1)])
def test_chunks_of_joined_segments(lengths: tuple[int, ...], batch: int) -> None:
    """A chunk may hold tokens of several segments; its size is over all videos."""
    segments = [torch.randn(batch, length, 2) for length in lengths]
    whole = torch.cat(segments, dim=1)
    for most in (2, 4, 50):
        found = list(token_chunks(segments, most))
        assert torch.equal(torch.cat([tokens for _, tokens in found], dim=1), whole)
        for rows, tokens in found:
            assert torch.equal(tokens, whole[:, rows])
            assert tokens.shape[0] * tokens.shape[1] <= max(most, batch)
