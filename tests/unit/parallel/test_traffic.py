"""The bytes of attention, computed from shards and heads."""

from __future__ import annotations

from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.attention.traffic import AttentionTraffic


def test_backward_sends_what_its_exchanges_carry() -> None:
    """Counted message by message, with uneven tokens and heads."""
    dims = ParallelDims(ring_degree=3, ulysses_degree=2)
    traffic = AttentionTraffic(dims, TokenShards.even(23, dims), 5, 5, 10)
    counts, (first, second) = traffic.shards.counts, (len(own) for own in traffic.heads.query)
    assert (first, second) == (3, 2)
    sent = dict.fromkeys(range(6), 0)
    for ring_rank in range(3):
        for own, peer, heads, peer_heads in ((0, 1, first, second), (1, 0, second, first)):
            rank, other = 2 * ring_rank + own, 2 * ring_rank + peer
            sent[rank] += 10 * counts[rank] * peer_heads  # the output's gradient
            sent[rank] += 10 * counts[other] * 3 * heads  # gradients of q, k and v
            for owner in range(3):
                block = 10 * 2 * heads * (counts[2 * owner] + counts[2 * owner + 1])
                sent[rank] += block * (owner != (ring_rank + 1) % 3)  # K and V to the next
                sent[rank] += block * (owner != ring_rank)  # their gradients to the owner
    assert sent == {rank: traffic.backward_bytes_sent_by(rank) for rank in range(6)}
