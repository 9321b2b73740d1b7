"""What attention across ranks sends, by arithmetic: the sums that the exchanges are held to.

Legend: B batch, s a rank's tokens, n query heads, m KV heads, H head size, U Ulysses degree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from longtake.parallel.dims import ParallelDims
from longtake.parallel.heads import HeadShards
from longtake.parallel.shards import TokenShards


@dataclass(frozen=True)
class AttentionTraffic:
    """The bytes of one self-attention, by who sends what to whom within one sequence.

    Args:
        dims: the layout; its cfg branches each have a sequence of their own.
        shards: who owns which tokens.
        num_heads, num_kv_heads: N and M.
        value_bytes: of one value of one head of one token of all videos: B x H x bytes an element.
    """

    dims: ParallelDims
    shards: TokenShards
    num_heads: int
    num_kv_heads: int
    value_bytes: int

    @cached_property
    def heads(self) -> HeadShards:
        """The heads of each Ulysses rank."""
        return HeadShards.even(self.num_heads, self.num_kv_heads, self.dims.ulysses_degree)

    @cached_property
    def stations(self) -> list[tuple[int, ...]]:
        """Tokens of each rank of each Ulysses group, in the order of the ring."""
        return self.shards.stations(self.dims.ulysses_degree)

    def to_heads(self, tokens: int, ulysses_rank: int) -> int:
        """What a rank with so many tokens sends to a Ulysses rank on the way to heads: q, k, v."""
        heads = self.heads
        return (
            tokens
            * self.value_bytes
            * (len(heads.query[ulysses_rank]) + 2 * self._kv(ulysses_rank))
        )

    def to_tokens(self, tokens: int, ulysses_rank: int) -> int:
        """What a Ulysses rank sends back to a rank with so many tokens: the output."""
        return tokens * self.value_bytes * len(self.heads.query[ulysses_rank])

    def ring_block(self, station: int, ulysses_rank: int) -> int:
        """One block of K and V as it travels: a station's tokens, a Ulysses rank's heads."""
        return sum(self.stations[station]) * self.value_bytes * 2 * self._kv(ulysses_rank)

    def bytes_sent_by(self, sequence_rank: int) -> int:
        """Everything that one rank sends to others in one attention."""
        ring_rank, own = divmod(sequence_rank, self.dims.ulysses_degree)
        group = self.stations[ring_rank]
        sent = group[own] * (self._heads_bytes - self.to_heads(1, own))
        sent += self.to_tokens(sum(group) - group[own], own)
        passed_on = self.shards.num_tokens - sum(
            self.stations[(ring_rank + 1) % len(self.stations)]
        )
        return sent + passed_on * self.value_bytes * 2 * self._kv(own)

    @cached_property
    def _heads_bytes(self) -> int:
        """What one token sends to all ranks of its group, its own included, on the way to heads."""
        return sum(self.to_heads(1, peer) for peer in range(self.dims.ulysses_degree))

    def _kv(self, ulysses_rank: int) -> int:
        return len(self.heads.kv[ulysses_rank])
