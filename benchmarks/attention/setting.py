"""What the attention benchmark computes: a shape, a mask, and which passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from longtake.parallel import ParallelDims, TokenShards

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""One rank's ``q [B, s, N, H]`` and ``k, v [B, s, M, H]`` -> ``out [B, s, N, H]``."""

_NOTATION = re.compile(r"(\d+)x(\d+)x(\d+)(?:/(\d+))?x(\d+)")


@dataclass(frozen=True)
class Shape:
    """Sizes of the whole sequence's attention.

    Attributes:
        batch: Batch size (B).
        num_tokens: Tokens (S).
        num_heads: Query heads (N).
        num_kv_heads: KV heads (M).
        head_size: Size of a head (H).
    """

    batch: int
    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_size: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Parse ``BxSxNxH``, or ``BxSxN/MxH`` with fewer KV heads than query heads."""
        match = _NOTATION.fullmatch(text)
        if match is None:
            raise ValueError(f"shape {text!r} must be BxSxNxH or BxSxN/MxH: try 1x8192x24/8x64")
        batch, num_tokens, num_heads, num_kv_heads, head_size = match.groups()
        return cls(*map(int, (batch, num_tokens, num_heads, num_kv_heads or num_heads, head_size)))

    @property
    def name(self) -> str:
        """The shape as :meth:`parse` reads it."""
        kv = f"/{self.num_kv_heads}" if self.grouped else ""
        return f"{self.batch}x{self.num_tokens}x{self.num_heads}{kv}x{self.head_size}"

    @property
    def grouped(self) -> bool:
        """Whether several query heads read one KV head."""
        return self.num_kv_heads != self.num_heads

    def tensors(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """q, k, v and the gradient of the output, of the whole sequence; the same on all ranks."""
        generator = torch.Generator().manual_seed(0)
        heads = self.num_heads, self.num_kv_heads, self.num_kv_heads, self.num_heads
        return [
            torch.randn(
                (self.batch, self.num_tokens, each, self.head_size), generator=generator
            ).to(dtype)
            for each in heads
        ]


@dataclass(frozen=True)
class Setting:
    """One table of the benchmark.

    Attributes:
        shape: The shape.
        dtype: Dtype of q, k and v.
        causal: Whether a query sees the keys up to its own position only.
        train: Whether the gradients of q, k and v are computed too.
        device_type: "cuda" or "cpu".
    """

    shape: Shape
    dtype: torch.dtype
    causal: bool
    train: bool
    device_type: str

    @property
    def name(self) -> str:
        """Heading of the table."""
        mask = "causal" if self.causal else "full"
        passes = "forward and backward" if self.train else "forward"
        return f"{self.shape.name} {str(self.dtype).removeprefix('torch.')}, {mask}, {passes}"

    def shards(self, num_ranks: int, *, zigzag: bool) -> TokenShards:
        """The tokens of each rank: in zigzag if a ring balances a causal mask by it."""
        dims = ParallelDims(ring_degree=num_ranks)
        if zigzag and self.causal:
            return TokenShards.zigzag(self.shape.num_tokens, dims)
        return TokenShards.even(self.shape.num_tokens, dims)
