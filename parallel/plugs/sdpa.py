"""USP with the signature of ``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

import torch

from longtake.errors import TensorError
from longtake.parallel.plugs.sequence import ShardedSequence
from longtake.parallel.shards import TokenShards


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    sequence: ShardedSequence,
    kv_shards: TokenShards | None = None,
) -> torch.Tensor:
    """Attention over a split sequence, with the arguments and the layout of torch's function.

    ``functools.partial(scaled_dot_product_attention, sequence=sequence)`` takes its place. B batch,
    s/t this rank's query/key tokens, N query heads, M KV heads, H head size.

    Args:
        query: ``[B, N, s, H]``, this rank's queries.
        key: ``[B, M, t, H]``, this rank's keys.
        value: ``[B, M, t, H]``, this rank's values.
        attn_mask: None.
        dropout_p: 0.
        is_causal: Whether a query sees only the keys at or before its position in the whole
            sequence.
        scale: Factor of the scores; ``H ** -0.5`` if None.
        enable_gqa: Whether M may be a divisor of N.
        sequence: The sequence of the queries.
        kv_shards: Ownership of the keys in cross attention; None in self-attention.

    Returns:
        ``[B, N, s, H]`` in query's dtype: the attention of this rank's queries.

    Raises:
        LayoutError, TensorError, KernelError: Invalid arguments; raised before anything is sent.
        PeerLostError: A rank died, raised, or did not answer in time.
    """
    _check_masks(attn_mask, dropout_p)
    _check_heads(query, key, value, enable_gqa)
    q_BsNH, k_BtMH, v_BtMH = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out_BsNH = sequence.attend(
        q_BsNH, k_BtMH, v_BtMH, causal=is_causal, scale=scale, kv_shards=kv_shards
    )
    return out_BsNH.transpose(1, 2)


def _check_masks(attn_mask: object, dropout_p: float) -> None:
    """Refuse what hides or drops attention weights."""
    if attn_mask is not None:
        raise TensorError(
            f"attn_mask={type(attn_mask).__name__}: there are no masks across ranks; pass "
            "is_causal=True for a causal one, and document_lengths for packed documents"
        )
    if dropout_p != 0:
        raise TensorError(
            f"dropout_p={dropout_p!r}: attention weights are not dropped across ranks; pass 0"
        )


def _check_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool
) -> None:
    """Check the dimensions and the numbers of heads."""
    if not (query.ndim == key.ndim == value.ndim == 4):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        raise TensorError(f"{shapes} must have 4 dimensions: [batch, heads, tokens, head size]")
    if key.shape[1] != query.shape[1] and not enable_gqa:
        raise TensorError(
            f"{query.shape[1]} query heads and {key.shape[1]} KV heads: pass enable_gqa=True"
        )
