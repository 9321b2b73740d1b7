"""Ring attention: keys and values travel round the ranks, queries stay.

Each rank attends to the block that it holds while the next one arrives, and merges the partial
results by their log-sum-exp (Ring Attention, arXiv 2310.01889; the merge is that of Flash
Attention, arXiv 2205.14135, section 3.1). Exact for blocks of any, also different, lengths.

Shapes: B batch, S tokens of this rank's queries, T keys of one block, n query heads, m KV heads,
H head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from longtake.parallel.all_to_all import split_kv
from longtake.parallel.exchange import swap_point_to_point

BlockAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]
]
"""(q_BSnH, k_BTmH, v_BTmH) -> (out_BSnH, lse_BSn), with at least one key."""


@dataclass(frozen=True)
class RingGroup:
    """Who holds which block of keys, as one rank of the ring sees it.

    Args:
        group: the ranks.
        rank: this rank's place among them.
        block_tokens: keys' tokens (T) in the block of each rank.
    """

    group: dist.ProcessGroup
    rank: int
    block_tokens: tuple[int, ...]

    @property
    def degree(self) -> int:
        """Ranks of the ring."""
        return len(self.block_tokens)

    def tokens_at(self, step: int) -> int:
        """Tokens of the block that this rank holds at a step: its own at 0, then those before."""
        return self.block_tokens[(self.rank - step) % self.degree]

    def pass_on(self, held: torch.Tensor, arriving: torch.Tensor) -> Callable[[], None]:
        """Start sending to the next rank and receiving from the one before; return the wait."""
        return swap_point_to_point(
            sends=[(held, (self.rank + 1) % self.degree)],
            receives=[(arriving, (self.rank - 1) % self.degree)],
            group=self.group,
        )


def ring_attention(
    q_BSnH: torch.Tensor, kv_TBmH: torch.Tensor, ring: RingGroup, attend: BlockAttention
) -> torch.Tensor:
    """Attention of this rank's queries over the keys of all ranks of the ring.

    Args:
        q_BSnH: this rank's queries.
        kv_TBmH: this rank's block of keys and values in one buffer (see split_kv), contiguous if
            there are other ranks: it is then sent on and its memory used again.
        ring: who holds what; one block at least is not empty.
        attend: local attention with a true log-sum-exp (needed for more than one block).

    Returns:
        ``out_BSnH`` in q's dtype. Partial results are merged in float32 (float64 for float64).

    Raises:
        PeerLostError: a rank of the ring died or did not answer in time.
    """
    merged: tuple[torch.Tensor, torch.Tensor | None] | None = None
    spare = kv_TBmH[:0]
    for step in range(ring.degree):
        next_step = step + 1
        if next_step < ring.degree:
            arriving = _reuse(spare, (ring.tokens_at(next_step), *kv_TBmH.shape[1:]))
            wait = ring.pass_on(kv_TBmH, arriving)
        if len(kv_TBmH) > 0:
            block = attend(q_BSnH, *split_kv(kv_TBmH))
            merged = block if merged is None else _merge(merged, block)
        if next_step < ring.degree:
            wait()
            spare, kv_TBmH = kv_TBmH, arriving
    assert merged is not None, "attention over no keys is not defined"
    return merged[0].to(q_BSnH.dtype)


def _merge(
    partial: tuple[torch.Tensor, torch.Tensor | None],
    block: tuple[torch.Tensor, torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge attention over a further block of keys into that over the keys so far, in place.

    Args:
        partial, block: ``(out_BSnH, lse_BSn)`` over keys that have none in common.
    """
    out, lse = partial
    block_out, block_lse = block
    assert lse is not None and block_lse is not None, "merging takes a log-sum-exp"
    block_share = torch.sigmoid(block_lse - lse)  # of the sum of all exponentials
    out = out.to(lse.dtype).lerp_(block_out.to(lse.dtype), block_share.unsqueeze(-1))
    return out, torch.logaddexp(lse, block_lse)


def _reuse(spare: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The spare buffer in another shape if it is large enough, else a new one."""
    size = math.prod(shape)
    if spare.numel() < size:
        return spare.new_empty(shape)
    return spare.view(-1)[:size].view(shape)
