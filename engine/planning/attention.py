"""How long one attention across ranks takes: exchanges, kernels, merging; what hides, what shows.

Follows longtake.parallel step by step: tokens to heads, K and V round the ring while blocks are
computed, heads to tokens. All groups of the grid work at one time and share the links. Every rank
waits for the slowest, which has most tokens or most heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from longtake.configs.base import ELEMENT_BYTES, Dtype
from longtake.configs.hardware import Hardware
from longtake.engine.planning.network import Network
from longtake.parallel.traffic import AttentionTraffic

Causal = Literal["no", "contiguous", "zigzag"]
"""Which keys a query sees: all; or those before it, with ranks holding stretches in order (the last
has most to do), or two stretches each, one from either end (all have the same).

Video attention sees all. The others are for tables that were published of text models."""

_ALL_TO_ALL_LAUNCHES, _RING_LAUNCHES = 6, 10

_CAUSAL_SHARE = 0.91
"""What a kernel reaches with a causal mask, over what it reaches without: FlashAttention-2 and
cuDNN with 16k tokens and heads of 128 (FlashAttention-3, arXiv 2407.08608, figure 5: 335 of 370,
539 of 595 TFLOP/s)."""

_MERGE_UNITS = {4: 3.1, 2: 9.3}
"""Bytes through memory for one merge, over those of the output; in float32 whatever comes in."""


@dataclass(frozen=True)
class AttentionTime:
    """One attention across ranks, in seconds.

    Attributes:
        compute_s: of kernels and merging.
        copies_s: of packing for exchanges and unpacking.
        exposed_s: of exchanges that nothing hides.
        hidden_s: of exchanges behind which kernels compute.
    """

    compute_s: float = 0.0
    copies_s: float = 0.0
    exposed_s: float = 0.0
    hidden_s: float = 0.0

    @property
    def seconds(self) -> float:
        """All that it takes."""
        return self.compute_s + self.copies_s + self.exposed_s


@dataclass(frozen=True)
class AttentionModel:
    """Attention on some hardware.

    Args:
        batch_head_size: B x H, values of one head of one token of all videos.
    """

    hardware: Hardware
    traffic: AttentionTraffic
    batch_head_size: int
    dtype: Dtype
    causal: Causal = "no"

    def time(self) -> AttentionTime:
        """One attention."""
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
        """Both exchanges of all Ulysses groups."""
        traffic, network = self.traffic, Network(self.hardware)
        degree = traffic.dims.ulysses_degree
        if degree == 1:
            return 0.0
        heads = [traffic.to_heads(1, peer) for peer in range(degree)]
        back_heads = [traffic.to_tokens(1, peer) for peer in range(degree)]
        there, back = [], []
        for first, group in self._groups():
            ranks = first + np.arange(degree)
            here, peers = np.repeat(ranks, degree), np.tile(ranks, degree)
            there.append(np.stack([here, peers, np.outer(group, heads).ravel()], axis=1))
            back.append(np.stack([peers, here, np.outer(group, back_heads).ravel()], axis=1))
        launches = 2 * _ALL_TO_ALL_LAUNCHES * self.hardware.launch_s.value
        return sum(network.seconds(np.concatenate(rows)) for rows in (there, back)) + launches

    def _groups(self) -> list[tuple[int, tuple[int, ...]]]:
        """The first rank of each Ulysses group, and the tokens of its ranks."""
        dims = self.traffic.dims
        return [
            ((cfg_rank * dims.ring_degree + ring_rank) * dims.ulysses_degree, station)
            for cfg_rank in range(dims.cfg_degree)
            for ring_rank, station in enumerate(self.traffic.stations)
        ]

    def _ring(self) -> AttentionTime:
        """Kernels over each block, and the blocks' way round, of the busiest station."""
        degree, tokens = self.traffic.dims.ring_degree, [sum(s) for s in self.traffic.stations]
        queries, keys = max(tokens), max(tokens)
        block_s = self._kernel_s(queries, keys)
        hop_s = self._hop_s() if degree > 1 else 0.0
        behind = hop_s * self.hardware.overlap_share.value
        compute_s, exposed_s, hidden_s = 0.0, 0.0, 0.0
        for step in range(degree):
            computed = block_s * self._seen(step)
            compute_s += computed
            if step + 1 < degree:
                hidden = min(behind, computed)
                hidden_s, exposed_s = hidden_s + hidden, exposed_s + hop_s - hidden
        merges = degree - 1
        merged = self._value_bytes(queries * self._most_heads) * _MERGE_UNITS[self._element_bytes]
        launches = merges * _RING_LAUNCHES * self.hardware.launch_s.value
        return AttentionTime(
            compute_s, merges * self._memory_s(merged) + launches, exposed_s, hidden_s
        )

    def _seen(self, step: int) -> float:
        """The part of a step's block that the busiest rank has to look at."""
        if self.causal == "no":
            return 1.0
        if step == 0:  # its own block, half of which is masked
            return 0.5 / _CAUSAL_SHARE
        return 0.5 if self.causal == "zigzag" else 1.0

    def _hop_s(self) -> float:
        """One step of all rings."""
        dims, traffic = self.traffic.dims, self.traffic
        hops = []
        for cfg_rank in range(dims.cfg_degree):
            branch = cfg_rank * dims.sequence_degree
            for ring_rank in range(dims.ring_degree):
                onwards = (ring_rank + 1) % dims.ring_degree
                for ulysses_rank in range(dims.ulysses_degree):
                    hops.append(
                        (
                            branch + ring_rank * dims.ulysses_degree + ulysses_rank,
                            branch + onwards * dims.ulysses_degree + ulysses_rank,
                            traffic.ring_block(ring_rank, ulysses_rank),
                        )
                    )
        return Network(self.hardware).seconds(hops)

    def _packing_s(self) -> float:
        """Copies of q, k, v and the output around the exchanges: read once, written once."""
        dims, traffic = self.traffic.dims, self.traffic
        if dims.sequence_degree == 1:
            return 0.0
        tokens = max(traffic.shards.counts)
        own = tokens * (traffic.num_heads + 2 * traffic.num_kv_heads)
        station = max(sum(station) for station in traffic.stations)
        packed = 0
        if dims.ulysses_degree > 1:
            packed += own + tokens * traffic.num_heads + station * self._most_heads
        if dims.ring_degree > 1:  # alone it packs K and V, behind an all-to-all q as well
            packed += own if dims.ulysses_degree > 1 else tokens * 2 * traffic.num_kv_heads
        return self._memory_s(2 * self._value_bytes(packed))

    def _kernel_s(self, queries: int, keys: int) -> float:
        flops = 4 * queries * keys * self.batch_head_size * self._most_heads
        reached = self.hardware.flops_per_s[self.dtype].value * self.hardware.attention_share.value
        return flops / reached + 2 * self.hardware.launch_s.value

    def _value_bytes(self, heads_of_tokens: int) -> float:
        return heads_of_tokens * self.batch_head_size * self._element_bytes

    def _memory_s(self, num_bytes: float) -> float:
        hardware = self.hardware
        return num_bytes / (hardware.memory_bytes_per_s.value * hardware.memory_share.value)

    @property
    def _element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]
