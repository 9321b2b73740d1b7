"""Memory of attention across ranks, besides q, k and v; without torch.

Legend: s a rank's tokens of the split sequence.
"""

from __future__ import annotations

from longtake.pipelines.costs import AttentionHeads


def attention_buffers(
    heads: AttentionHeads,
    num_tokens: int,
    element_size: int,
    *,
    ulysses: bool,
    ring: bool,
    head_share: float,
) -> int:
    """Most bytes that :func:`~longtake.parallel.usp_attention` allocates besides q, k and v.

    Args:
        heads: The attention.
        num_tokens: s.
        element_size: Bytes per element.
        ulysses: Whether attention is split over the Ulysses axis.
        ring: Whether it is split over the ring axis.
        head_share: Heads of this rank, divided by an even share of the heads.
    """
    query = num_tokens * heads.num_heads * heads.head_size * element_size
    kv = 2 * num_tokens * heads.num_kv_heads * heads.head_size * element_size
    share = head_share if ulysses else 1.0
    exchanged = query + kv if ulysses else 0  # sent, and as much received
    if not ring:  # then the kernel's contiguous copies of K and V, and its output
        return int(share * exchanged + max(exchanged, share * (kv + query)))
    # The block and the next one; then the kernel, with the earlier outputs, or the merge.
    rows = 2 * kv + (query if ulysses else 0)
    merged = query * max(1, 4 // element_size)  # in float32, or wider
    attended = kv + 2 * query + merged
    merging = 2 * (query + merged) if merged > query else 2 * query
    return int(max(2 * share * exchanged + exchanged, share * (rows + max(attended, merging))))
