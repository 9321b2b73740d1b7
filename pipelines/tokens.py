"""What the transformers of several families do with a rank's tokens.

Legend: B videos, C channels, n or s local tokens, P values per token, N heads, H head size, D model
width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from longtake.pipelines.chunks import TOKENS_PER_CHUNK, chunks_of


def rotate(x: torch.Tensor, rotation: torch.Tensor, out: torch.Tensor) -> None:
    """Rotate each pair of adjacent values of ``[B, s, N, H]`` by ``rotation``, in float32.

    Modifies ``x`` if it is already float32.

    Args:
        x: ``[B, s, N, H]``, contiguous.
        rotation: ``[s, H / 2]``, complex64.
        out: Receives the result, ``[B, s, N, H]``.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    pairs.mul_(rotation[:, None])
    out.copy_(torch.view_as_real(pairs).flatten(-2))


def row_of_patches(tokens: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    """Lay tokens out side by side, for a patch embedding by convolution.

    Args:
        tokens: ``[B, s, P]``.
        patch: Latent frames, rows and columns per token.

    Returns:
        ``[B, C, frames, rows, s x columns]``.
    """
    patches: torch.Tensor = tokens.unflatten(-1, (-1, *patch))
    return patches.permute(0, 2, 3, 4, 1, 5).flatten(-2)


def new_heads(
    tokens: torch.Tensor, num_tokens: int, num_heads: int, head_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uninitialized q, k and v, ``[B, n, N, H]`` each, of the dtype of ``tokens``, ``[B, ...]``.

    A head's keys and values are contiguous, as the CPU's kernel wants them.
    """
    batch = len(tokens)
    q = tokens.new_empty(batch, num_tokens, num_heads, head_size)
    k, v = (tokens.new_empty(batch, num_heads, num_tokens, head_size) for _ in range(2))
    return q, k.transpose(1, 2), v.transpose(1, 2)


def token_chunks(
    segments: Sequence[torch.Tensor], tokens_per_chunk: int = TOKENS_PER_CHUNK
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The tokens of some segments, joined, chunk by chunk.

    Args:
        segments: ``[B, n, D]`` each, in the order of the sequence.
        tokens_per_chunk: Largest number of tokens of a chunk, over all videos.

    Yields:
        The chunk's place in the sequence, and its tokens, ``[B, chunk, D]``.
    """
    total = sum(segment.shape[1] for segment in segments)
    for rows in chunks_of(total, tokens_per_chunk // max(1, len(segments[0]))):
        parts, first = [], 0
        for segment in segments:
            parts.append(segment[:, max(rows.start - first, 0) : max(rows.stop - first, 0)])
            first += segment.shape[1]
        yield rows, parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class ChunkedFeedForward(nn.Module):
    """Runs a feed-forward over chunks of tokens, so that its wide tensors exist for one at a time.

    The result is written over the input, which the blocks compute for this call and read no more.
    The wrapped module's parameters are one name deeper than those of a checkpoint's files.

    Args:
        inner: The feed-forward, from tokens to tokens of the same width.
        tokens_per_chunk: Largest number of tokens of a chunk, over all videos.
    """

    def __init__(self, inner: nn.Module, tokens_per_chunk: int = TOKENS_PER_CHUNK) -> None:
        super().__init__()
        self.inner = inner
        self._tokens_per_chunk = tokens_per_chunk

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Replace tokens ``[B, n, D]`` by their feed-forward, and return them."""
        rows = tokens.view(-1, tokens.shape[-1])
        for chunk in chunks_of(len(rows), self._tokens_per_chunk):
            rows[chunk] = self.inner(rows[chunk])
        return tokens
