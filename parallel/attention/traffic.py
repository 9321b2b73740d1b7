"""Computes the bytes that attention across ranks sends. Tests compare the exchanges with them.

Legend: B batch, N query heads, M KV heads, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from longtake.parallel.attention.mask import Mask, TokenOrder
from longtake.parallel.attention.schedule import RingSchedule
from longtake.parallel.dims import ParallelDims
from longtake.parallel.heads import HeadShards
from longtake.parallel.shards import TokenShards


@dataclass(frozen=True)
class AttentionTraffic:
    """The bytes of one self-attention and of its backward pass, within one sequence.

    Args:
        dims: The layout; each cfg branch has a sequence of its own.
        shards: The token shards of the sequence.
        num_heads: Number of query heads (N).
        num_kv_heads: Number of KV heads (M).
        head_bytes: Bytes of one head of one token over the batch: B x H x bytes per element.
        mask: The keys that a query sees.
    """

    dims: ParallelDims
    shards: TokenShards
    num_heads: int
    num_kv_heads: int
    head_bytes: int
    mask: Mask = Mask()

    @cached_property
    def heads(self) -> HeadShards:
        """The head shards of a Ulysses group."""
        return HeadShards.even(self.num_heads, self.num_kv_heads, self.dims.ulysses_degree)

    @cached_property
    def group_counts(self) -> list[tuple[int, ...]]:
        """Number of tokens of each rank of each Ulysses group, by ring rank."""
        return self.shards.group_counts(self.dims.ulysses_degree)

    @cached_property
    def schedule(self) -> RingSchedule:
        """The blocks of the ring."""
        degree = self.dims.ulysses_degree
        groups = tuple(
            TokenOrder(
                tuple(span for own in self.shards.ranges[first : first + degree] for span in own),
                ascends=self.mask.hides,
            ).sorted
            for first in range(0, self.shards.num_ranks, degree)
        )
        return RingSchedule.of(self.mask, groups, groups)

    def tokens_to_heads_bytes(self, tokens: int, ulysses_rank: int) -> int:
        """Bytes of q, k and v of a number of tokens, for the heads of one Ulysses rank."""
        heads = self.heads
        return (
            tokens * self.head_bytes * (len(heads.query[ulysses_rank]) + 2 * self._kv(ulysses_rank))
        )

    def heads_to_tokens_bytes(self, tokens: int, ulysses_rank: int) -> int:
        """Bytes of the output of a number of tokens, for the heads of one Ulysses rank."""
        return tokens * self.head_bytes * len(self.heads.query[ulysses_rank])

    def ring_block_bytes(self, ring_rank: int, ulysses_rank: int) -> int:
        """Bytes of one K/V block: all tokens of a ring rank, the heads of a Ulysses rank."""
        return sum(self.group_counts[ring_rank]) * self.head_bytes * 2 * self._kv(ulysses_rank)

    def bytes_sent_by(self, sequence_rank: int) -> int:
        """Bytes that one rank sends to others in one attention."""
        ring_rank, own = divmod(sequence_rank, self.dims.ulysses_degree)
        group = self.group_counts[ring_rank]
        sent = group[own] * (self._heads_bytes - self.tokens_to_heads_bytes(1, own))
        sent += self.heads_to_tokens_bytes(sum(group) - group[own], own)
        return sent + self._block_bytes(self._forwarded_tokens(ring_rank), own)

    def backward_bytes_sent_by(self, sequence_rank: int) -> int:
        """Bytes that one rank sends to others in the backward pass of one attention.

        The gradient of the output for the peers' heads, those of q, k and v for the peers' tokens,
        the blocks again, and this rank's part of the gradient of each block to its owner.
        """
        ring_rank, own = divmod(sequence_rank, self.dims.ulysses_degree)
        group = self.group_counts[ring_rank]
        peers_heads = self.num_heads - len(self.heads.query[own])
        sent = group[own] * peers_heads * self.head_bytes
        sent += self.tokens_to_heads_bytes(sum(group) - group[own], own)
        gradients = sum(
            self.schedule.seen(ring_rank, owner)
            for owner in range(self.dims.ring_degree)
            if owner != ring_rank
        )
        return sent + self._block_bytes(self._forwarded_tokens(ring_rank) + gradients, own)

    def _forwarded_tokens(self, ring_rank: int) -> int:
        """Tokens of the blocks that a rank sends on."""
        receiver = (ring_rank + self.schedule.direction) % self.dims.ring_degree
        return sum(self.schedule.held(receiver, step) for step in range(1, self.dims.ring_degree))

    def _block_bytes(self, tokens: int, ulysses_rank: int) -> int:
        return tokens * self.head_bytes * 2 * self._kv(ulysses_rank)

    @cached_property
    def _heads_bytes(self) -> int:
        """Bytes of q, k and v of one token for all ranks of its group, its own included."""
        return sum(self.tokens_to_heads_bytes(1, peer) for peer in range(self.dims.ulysses_degree))

    def _kv(self, ulysses_rank: int) -> int:
        return len(self.heads.kv[ulysses_rank])
