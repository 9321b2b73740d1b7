"""Ring attention: keys and values rotate among the ranks, queries stay.

Each rank attends to the block that it holds while it receives the next one, and merges the partial
results by log-sum-exp (Ring Attention, arXiv 2310.01889; the merge is FlashAttention's, arXiv
2205.14135, section 3.1). Exact for blocks of any lengths, equal or not.

Legend: B batch, S this rank's query tokens, T tokens of one K/V block, n query heads, m KV heads,
H head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from longtake.parallel.attention.all_to_all import split_kv
from longtake.parallel.exchange import start_send_recv

BlockAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]
]
"""(q_BSnH, k_BTmH, v_BTmH) -> (out_BSnH, lse_BSn), with at least one key."""


@dataclass(frozen=True)
class RingGroup:
    """The ring as one of its ranks sees it.

    Args:
        group: Process group of the ring.
        rank: This rank in the group.
        block_tokens: Tokens (T) of each rank's own K/V block.
    """

    group: dist.ProcessGroup
    rank: int
    block_tokens: tuple[int, ...]

    @property
    def degree(self) -> int:
        """Number of ranks."""
        return len(self.block_tokens)

    def tokens_at_step(self, step: int) -> int:
        """Tokens of the block that this rank holds at a step: step 0 is its own block."""
        return self.block_tokens[(self.rank - step) % self.degree]

    def rotate(self, block: torch.Tensor, received: torch.Tensor) -> Callable[[], None]:
        """Start sending a block to the next rank and receiving the previous rank's.

        Returns:
            A function that waits for both.
        """
        return start_send_recv(
            sends=[(block, (self.rank + 1) % self.degree)],
            receives=[(received, (self.rank - 1) % self.degree)],
            group=self.group,
        )


def ring_attention(
    q_BSnH: torch.Tensor, kv_TBmH: torch.Tensor, ring: RingGroup, attend: BlockAttention
) -> torch.Tensor:
    """Attention of this rank's queries over the keys of all ranks of the ring.

    Args:
        q_BSnH: This rank's queries.
        kv_TBmH: This rank's K/V block in one buffer (see :func:`split_kv`). With several ranks it
            must be contiguous, and its memory is reused.
        ring: The ring; at least one of its blocks is not empty.
        attend: Local attention over one block; with several blocks it must return a log-sum-exp.

    Returns:
        ``out_BSnH`` in q's dtype. Partial results are merged in float32 (float64 for float64).

    Raises:
        PeerLostError: A rank of the ring died or did not answer in time.
    """
    result: tuple[torch.Tensor, torch.Tensor | None] | None = None
    free = kv_TBmH[:0]
    for step in range(ring.degree):
        next_step = step + 1
        if next_step < ring.degree:
            received = _reuse(free, (ring.tokens_at_step(next_step), *kv_TBmH.shape[1:]))
            wait = ring.rotate(kv_TBmH, received)
        if len(kv_TBmH) > 0:
            block = attend(q_BSnH, *split_kv(kv_TBmH))
            result = block if result is None else _merge(result, block)
        if next_step < ring.degree:
            wait()
            free, kv_TBmH = kv_TBmH, received
    assert result is not None, "attention over no keys is not defined"
    return result[0].to(q_BSnH.dtype)


def _merge(
    partial: tuple[torch.Tensor, torch.Tensor | None],
    block: tuple[torch.Tensor, torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the attention over another block of keys into a partial result, in place.

    Args:
        partial: ``(out_BSnH, lse_BSn)`` over the blocks so far.
        block: ``(out_BSnH, lse_BSn)`` over another block.
    """
    out, lse = partial
    block_out, block_lse = block
    assert lse is not None and block_lse is not None, "merging needs a log-sum-exp"
    block_share = torch.sigmoid(block_lse - lse)  # exp(block_lse) / (exp(lse) + exp(block_lse))
    out = out.to(lse.dtype).lerp_(block_out.to(lse.dtype), block_share.unsqueeze(-1))
    return out, torch.logaddexp(lse, block_lse)


def _reuse(buffer: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A view of the buffer in another shape if it is large enough, else a new tensor."""
    size = math.prod(shape)
    if buffer.numel() < size:
        return buffer.new_empty(shape)
    return buffer.view(-1)[:size].view(shape)
