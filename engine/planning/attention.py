"""Predicts the duration of one attention across ranks: exchanges, kernels, merging, overlap.

Follows longtake.parallel step by step: tokens to heads, K and V around the ring while blocks are
computed, heads to tokens. All groups work concurrently and share the links. Every rank waits for
the slowest, which has the most tokens or the most heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from longtake.configs.base import ELEMENT_BYTES, Dtype
from longtake.configs.hardware import Hardware
from longtake.engine.planning.network import Network
from longtake.parallel.attention.traffic import AttentionTraffic

Causal = Literal["no", "contiguous", "zigzag"]
"""The mask: none; causal with contiguous shards, where the last rank has the most work; or causal
with zigzag shards, one chunk from each end per rank, where all have the same work.

Video attention has no mask. The causal kinds reproduce published tables of text models."""

_ALL_TO_ALL_LAUNCHES, _RING_LAUNCHES = 6, 10

_CAUSAL_SHARE = 0.91
"""Throughput of a kernel with a causal mask over that without: FlashAttention-2 and cuDNN with 16k
tokens and head size 128 (FlashAttention-3, arXiv 2407.08608, figure 5: 335 of 370, 539 of 595
TFLOP/s)."""

MERGE_TRAFFIC = {4: 3.1, 2: 9.3}
"""Memory traffic of one merge over the bytes of the output, by bytes per element of the output. A
merge computes in float32."""


@dataclass(frozen=True)
class AttentionTime:
    """One attention across ranks, in seconds.

    Attributes:
        compute_s: Kernels.
        copies_s: Packing and unpacking for exchanges, and merging.
        exposed_s: Communication that computation does not hide.
        hidden_s: Communication behind computation.
    """

    compute_s: float = 0.0
    copies_s: float = 0.0
    exposed_s: float = 0.0
    hidden_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The duration of the attention."""
        return self.compute_s + self.copies_s + self.exposed_s


@dataclass(frozen=True)
class AttentionModel:
    """Attention on a hardware profile.

    Args:
        hardware: The hardware profile.
        traffic: The layout, its shards and the bytes they exchange.
        batch_head_size: Elements of one head of one token over the batch: B x H.
        dtype: The dtype of q, k and v.
        causal: The mask.
    """

    hardware: Hardware
    traffic: AttentionTraffic
    batch_head_size: int
    dtype: Dtype
    causal: Causal = "no"

    def time(self) -> AttentionTime:
        """The duration of one attention, by part."""
        exchanges = self._all_to_all_s()
        ring = self._ring()
        return AttentionTime(
            ring.compute_s,
            ring.copies_s + self._packing_s(),
            ring.exposed_s + exchanges,
            ring.hidden_s,
        )

    @property
    def _most_heads(self) -> int:
        return max(map(len, self.traffic.heads.query))

    def _all_to_all_s(self) -> float:
        """Seconds of both all-to-alls, with all Ulysses groups at once."""
        traffic, network = self.traffic, Network(self.hardware)
        degree = traffic.dims.ulysses_degree
        if degree == 1:
            return 0.0
        heads = [traffic.tokens_to_heads_bytes(1, peer) for peer in range(degree)]
        back_heads = [traffic.heads_to_tokens_bytes(1, peer) for peer in range(degree)]
        there, back = [], []
        for first, group in self._groups():
            ranks = first + np.arange(degree)
            here, peers = np.repeat(ranks, degree), np.tile(ranks, degree)
            there.append(np.stack([here, peers, np.outer(group, heads).ravel()], axis=1))
            back.append(np.stack([peers, here, np.outer(group, back_heads).ravel()], axis=1))
        launches = 2 * _ALL_TO_ALL_LAUNCHES * self.hardware.launch_s.value
        return sum(network.seconds(np.concatenate(rows)) for rows in (there, back)) + launches

    def _groups(self) -> list[tuple[int, tuple[int, ...]]]:
        """The first rank of each Ulysses group, and the token counts of its ranks."""
        dims = self.traffic.dims
        return [
            ((cfg_rank * dims.ring_degree + ring_rank) * dims.ulysses_degree, counts)
            for cfg_rank in range(dims.cfg_degree)
            for ring_rank, counts in enumerate(self.traffic.group_counts)
        ]

    def _ring(self) -> AttentionTime:
        """Kernels over each block, and the rotation of the blocks, on the busiest rank."""
        degree, tokens = self.traffic.dims.ring_degree, [sum(s) for s in self.traffic.group_counts]
        queries, keys = max(tokens), max(tokens)
        block_s = self._kernel_s(queries, keys)
        hop_s = self._hop_s() if degree > 1 else 0.0
        hideable_s = hop_s * self.hardware.overlap_share.value
        compute_s, exposed_s, hidden_s = 0.0, 0.0, 0.0
        for step in range(degree):
            computed = block_s * self._unmasked_share(step)
            compute_s += computed
            if step + 1 < degree:
                hidden = min(hideable_s, computed)
                hidden_s, exposed_s = hidden_s + hidden, exposed_s + hop_s - hidden
        merges = degree - 1
        merged = self._value_bytes(queries * self._most_heads) * MERGE_TRAFFIC[self._element_bytes]
        launches = merges * _RING_LAUNCHES * self.hardware.launch_s.value
        return AttentionTime(
            compute_s, merges * self._memory_s(merged) + launches, exposed_s, hidden_s
        )

    def _unmasked_share(self, step: int) -> float:
        """The share of a step's block that the busiest rank computes."""
        if self.causal == "no":
            return 1.0
        if step == 0:  # half of a rank's own block is masked
            return 0.5 / _CAUSAL_SHARE
        return 0.5 if self.causal == "zigzag" else 1.0

    def _hop_s(self) -> float:
        """Seconds of one step of all rings."""
        dims, traffic = self.traffic.dims, self.traffic
        hops = []
        for cfg_rank in range(dims.cfg_degree):
            branch = cfg_rank * dims.sequence_degree
            for ring_rank in range(dims.ring_degree):
                next_ring_rank = (ring_rank + 1) % dims.ring_degree
                for ulysses_rank in range(dims.ulysses_degree):
                    hops.append(
                        (
                            branch + ring_rank * dims.ulysses_degree + ulysses_rank,
                            branch + next_ring_rank * dims.ulysses_degree + ulysses_rank,
                            traffic.ring_block_bytes(ring_rank, ulysses_rank),
                        )
                    )
        return Network(self.hardware).seconds(hops)

    def _packing_s(self) -> float:
        """Seconds of packing q, k, v and the output for the exchanges: one read, one write."""
        dims, traffic = self.traffic.dims, self.traffic
        if dims.sequence_degree == 1:
            return 0.0
        tokens = max(traffic.shards.counts)
        qkv = tokens * (traffic.num_heads + 2 * traffic.num_kv_heads)
        group_tokens = max(sum(counts) for counts in traffic.group_counts)
        packed = 0
        if dims.ulysses_degree > 1:
            packed += qkv + tokens * traffic.num_heads + group_tokens * self._most_heads
        if dims.ring_degree > 1:  # after an all-to-all q is repacked with K and V
            packed += qkv if dims.ulysses_degree > 1 else tokens * 2 * traffic.num_kv_heads
        return self._memory_s(2 * self._value_bytes(packed))

    def _kernel_s(self, queries: int, keys: int) -> float:
        flops = 4 * queries * keys * self.batch_head_size * self._most_heads
        flops_per_s = (
            self.hardware.flops_per_s[self.dtype].value * self.hardware.attention_share.value
        )
        return flops / flops_per_s + 2 * self.hardware.launch_s.value

    def _value_bytes(self, heads_of_tokens: int) -> float:
        return heads_of_tokens * self.batch_head_size * self._element_bytes

    def _memory_s(self, num_bytes: float) -> float:
        hardware = self.hardware
        return num_bytes / (hardware.memory_bytes_per_s.value * hardware.memory_share.value)

    @property
    def _element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]
