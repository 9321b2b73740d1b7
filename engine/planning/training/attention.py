"""Predicts the duration of one causal attention across ranks, forward and backward.

It follows longtake.parallel: forward, tokens to heads, K and V round the ring, heads to tokens;
backward, the output's gradient to heads, K and V round the ring again while the gradients of each
block go straight to its owner, and the gradients of q, k and v back to tokens. Tokens are dealt in
zigzag, so that each block of the ring takes every rank the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from longtake.engine.planning.attention import MERGE_TRAFFIC
from longtake.engine.planning.training.communication import Collectives
from longtake.engine.planning.training.layouts import TrainingLayout
from longtake.engine.planning.training.pass_time import PassTime
from longtake.engine.planning.training.training_input import TrainingInput
from longtake.parallel import TokenShards
from longtake.parallel.attention.traffic import AttentionTraffic

BACKWARD_FLOPS = 2.5
"""FLOPs of backward over those of forward: five matrix products of a block, not two."""

BACKWARD_RATE = 0.85
"""Rate of backward over that of forward: FlashAttention-2 on an A100, causal, 32 heads of 128 and 8
KV heads, 8192 tokens, 373.4 forward/s and 94.7 forward and backward/s (github.com/zhuzilin/
ring-flash-attention, README): 205 and 174 TFLOP/s. The same forward rate is 0.658 of the peak; the
profile of A800 has 0.6616 from another publication."""


@dataclass(frozen=True)
class SequenceAttention:
    """The attention of one block, over one sequence.

    Args:
        training: The decoder, the sequence and the hardware.
        layout: The layout.
    """

    training: TrainingInput
    layout: TrainingLayout

    @cached_property
    def traffic(self) -> AttentionTraffic:
        """The bytes of forward, between the ranks that hold one tensor rank's heads."""
        config, layout = self.training.config, self.layout
        return AttentionTraffic(
            layout.dims,
            TokenShards.even(self.training.sequence, layout.dims),
            config.num_attention_heads // layout.tensor,
            config.num_key_value_heads // layout.tensor,
            config.head_dim * self.training.element_size,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the rank that has most."""
        return max(self.traffic.shards.counts)

    def forward(self) -> PassTime:
        """One forward pass."""
        there, back = self._exchange_bytes()
        degree, block = self.layout.ring, self._block_bytes
        hop_s = self._collectives.ring_s(block) if degree > 1 else 0.0
        ring = self._ring(1.0, 1.0, [hop_s] * (degree - 1) + [0.0])
        return ring + self._exchange(there) + self._exchange(back)

    def backward(self) -> PassTime:
        """One backward pass; an output's gradient is as large as the output.

        The gradients of a foreign block go to its owner beside the next block, the last ones alone.
        """
        there, back = self._exchange_bytes()
        degree, block = self.layout.ring, self._block_bytes
        hop_s = self._collectives.ring_s(block) if degree > 1 else 0.0
        returns_s = [self._collectives.ring_s(block, distance) for distance in range(1, degree)]
        beside_s = [hop_s] * (degree - 1) + [0.0]
        for step, return_s in enumerate(returns_s[:-1], start=2):
            beside_s[step] += return_s
        ring = self._ring(BACKWARD_FLOPS, BACKWARD_RATE, beside_s)
        ring += PassTime(exposed_s=sum(returns_s[-1:]))
        return ring + self._exchange(back) + self._exchange(there)

    def to_heads(self) -> PassTime:
        """The exchange of q, k and v alone, which recomputed projections repeat."""
        there, _ = self._exchange_bytes()
        return self._exchange(there)

    @cached_property
    def _collectives(self) -> Collectives:
        return Collectives(self.training.hardware, self.layout)

    @property
    def _block_bytes(self) -> int:
        return max(
            self.traffic.ring_block_bytes(ring_rank, 0) for ring_rank in range(self.layout.ring)
        )

    def _exchange_bytes(self) -> tuple[int, int]:
        """Bytes between two Ulysses ranks of q, k and v, and of the output."""
        traffic = self.traffic
        return (
            traffic.tokens_to_heads_bytes(self.tokens, 0),
            traffic.heads_to_tokens_bytes(self.tokens, 0),
        )

    def _exchange(self, pair_bytes: int) -> PassTime:
        """An all-to-all: packing, transfer, unpacking."""
        if self.layout.ulysses == 1:
            return PassTime()
        copied = 4 * pair_bytes * self.layout.ulysses  # each of two copies reads and writes
        return PassTime(
            memory_s=self.training.memory_s(copied),
            exposed_s=self._collectives.all_to_all_s(pair_bytes),
        )

    def _ring(self, work: float, rate: float, beside_s: list[float]) -> PassTime:
        """The blocks of the ring, half of each of which is visible.

        Args:
            work: FLOPs over those of forward.
            rate: Rate of the kernel over that of forward.
            beside_s: Communication beside each block.
        """
        training, traffic = self.training, self.traffic
        tokens = max(map(sum, traffic.group_counts))
        width = max(map(len, traffic.heads.query)) * training.config.head_dim
        flops_per_s = training.peak * training.hardware.attention_share.value * rate
        block = PassTime(attention_s=work * 2 * tokens**2 * width / flops_per_s)
        merged = MERGE_TRAFFIC[training.element_size] * tokens * width * training.element_size
        total = PassTime(memory_s=(len(beside_s) - 1) * training.memory_s(merged))
        for communication_s in beside_s:
            total += block.behind(communication_s, training.hardware.overlap_share.value)
        return total
