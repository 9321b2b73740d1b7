"""Blocks over chunks of tokens against the same blocks over all tokens at once."""

from __future__ import annotations

import pytest
import torch

from longtake.pipelines.tokens import ChunkedFeedForward
from tests import chunking, wan_denoising
from tests.chunking import CASES, Case, new_denoiser
from tests.rendering import ONE_RANK

ALL = 10**9
"""Tokens of a chunk that holds all."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_single_chunk_changes_no_bit(case: Case, dtype: torch.dtype) -> None:
    unwrapped, wrapped = (
        chunking.velocity(case, ONE_RANK, new_denoiser(case, size).to(dtype))
        for size in (None, ALL)
    )
    assert torch.equal(unwrapped, wrapped)
    assert unwrapped.std() > 0.1


@pytest.mark.parametrize("tokens_per_chunk", [1, 5, 7, 40, 51])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunks_match_all_tokens_at_once(case: Case, tokens_per_chunk: int) -> None:
    """45 video and 7 text tokens: chunks with both, of uneven sizes, and down to one token."""
    expected, found = (
        chunking.velocity(case, ONE_RANK, new_denoiser(case, size))
        for size in (None, tokens_per_chunk)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", wan_denoising.cases("45 tokens"), ids=str)
def test_wan_in_chunks_matches_all_tokens_at_once(case: wan_denoising.Case) -> None:
    """Chunks of 15 tokens of two videos. With a few queries the CPU's kernel is off by 2e-5."""
    expected, found = (
        wan_denoising.velocity(case, ONE_RANK, wan_denoising.new_denoiser(case.kind, size))
        for size in (ALL, 32)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_weights_keep_their_order_and_their_block() -> None:
    """Wrapped modules are one name deeper; nothing is added, left out or found twice."""
    plain, wrapped = (new_denoiser(CASES[0], size) for size in (None, 7))
    names = [name.replace("inner.", "") for name, _ in wrapped.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]
    for block, before in zip(wrapped.chains[0], plain.chains[0], strict=True):
        found, expected = (list(each.parameters()) for each in (block, before))
        assert [each.shape for each in found] == [each.shape for each in expected]


def test_a_feed_forward_overwrites_its_input() -> None:
    """Which frees its memory: the blocks do not read it again."""
    torch.manual_seed(0)
    inner = torch.nn.Linear(4, 4).requires_grad_(False)
    tokens = torch.randn(2, 5, 4)
    expected = inner(tokens)
    result = ChunkedFeedForward(inner, 3)(tokens)
    assert result is tokens
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
