"""HunyuanVideo's feed-forwards over chunks of tokens.

A single-stream block widens its tokens beside its attention, and projects both together: tensors of
four and five times the model's width. Wrapped, they exist for one chunk of tokens at a time, and
the block is still called whole.

Legend: B videos, n local tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from longtake.pipelines.chunks import chunks_of
from longtake.pipelines.tokens import ChunkedFeedForward


def chunk_double_block(block: Any, tokens_per_chunk: int) -> None:
    """Run the feed-forwards of a double-stream block over chunks of tokens."""
    block.ff = ChunkedFeedForward(block.ff, tokens_per_chunk)
    block.ff_context = ChunkedFeedForward(block.ff_context, tokens_per_chunk)


def chunk_single_block(block: Any, tokens_per_chunk: int) -> None:
    """Run the feed-forward of a single-stream block over chunks of tokens."""
    block.proj_mlp, block.act_mlp = Deferred(block.proj_mlp), Deferred(block.act_mlp)
    deferred = (block.proj_mlp, block.act_mlp)
    block.proj_out = ChunkedOutput(block.proj_out, deferred, tokens_per_chunk)


class Deferred(nn.Module):
    """Hands its input on, for :class:`ChunkedOutput` to compute the wrapped layer later.

    Args:
        inner: The layer.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``tokens``."""
        return tokens


class ChunkedOutput(nn.Module):
    """Computes deferred layers and the output of a single-stream block, chunk by chunk.

    Args:
        inner: The output projection, of the attention beside the deferred layers' result.
        deferred: The layers, in order. They stay modules of the block.
        tokens_per_chunk: Largest number of tokens of a chunk, over all videos.
    """

    def __init__(
        self, inner: nn.Module, deferred: Sequence[Deferred], tokens_per_chunk: int
    ) -> None:
        super().__init__()
        self.inner = inner
        self._deferred = tuple(deferred)  # a tuple registers no modules
        self._tokens_per_chunk = tokens_per_chunk

    def forward(self, joined: torch.Tensor) -> torch.Tensor:
        """Project ``[B, n, 2 D]``: the attention, which is overwritten, beside the tokens.

        Returns:
            ``[B, n, D]``, a view of ``joined``, which the block made for this call.
        """
        rows = joined.view(-1, joined.shape[-1])
        attention, tokens = rows.chunk(2, dim=-1)
        for chunk in chunks_of(len(rows), self._tokens_per_chunk):
            attention[chunk] = self.inner(
                torch.cat([attention[chunk], self._widened(tokens[chunk])], dim=-1)
            )
        return joined.chunk(2, dim=-1)[0]

    def _widened(self, tokens: torch.Tensor) -> torch.Tensor:
        """The deferred layers' result, ``[chunk, 4 D]``."""
        for each in self._deferred:
            tokens = each.inner(tokens.contiguous())
        return tokens
