"""The forward and the backward pass of attention across ranks, on one rank's tensors.

Forward: tokens to heads, the ring, heads to tokens (USP, arXiv 2405.07719, algorithms 1 and 2).
Backward: the adjoint of each, in reverse order.

Legend, upper case for a whole group, lower case for one rank: B batch, S/s query tokens, T/t key
tokens, N/n query heads, M/m KV heads, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from longtake.parallel.attention.all_to_all import (
    gradients_to_tokens,
    heads_to_tokens,
    pack_kv,
    queries_to_heads,
    split_kv,
    tokens_to_heads,
)
from longtake.parallel.attention.call import AttentionCall
from longtake.parallel.attention.partial import PartialAttention
from longtake.parallel.attention.ring import ring_attention, ring_attention_backward
from longtake.parallel.kernels.kernel import SavedTensors


class HeadTensors(NamedTuple):
    """What a Ulysses rank keeps for the backward pass: its group's tokens, ascending, of its heads.

    Attributes:
        q_SBnH: Queries.
        kv_TBmH: Keys and values in one buffer.
        out_BSnH: Attention of the queries.
    """

    q_SBnH: torch.Tensor
    kv_TBmH: torch.Tensor
    out_BSnH: torch.Tensor


class Result(NamedTuple):
    """What the forward pass computes.

    Attributes:
        out_BsNH: Attention of this rank's queries.
        lse_BSn: Log-sum-exp of this rank's heads, ascending; None if the kernel computes none.
        heads: What else the backward pass needs with a Ulysses group; None if none follows.
    """

    out_BsNH: torch.Tensor
    lse_BSn: torch.Tensor | None
    heads: HeadTensors | None = None


def forward(
    q_BsNH: torch.Tensor,
    k_BtMH: torch.Tensor,
    v_BtMH: torch.Tensor,
    call: AttentionCall,
    *,
    keep: bool = False,
) -> Result:
    """Attention of this rank's queries.

    Args:
        q_BsNH: Queries.
        k_BtMH: Keys.
        v_BtMH: Values.
        call: The call.
        keep: Whether a backward pass follows.
    """
    if call.ulysses.degree > 1:
        return _ulysses_forward(q_BsNH, k_BtMH, v_BtMH, call, keep)
    q, k, v = _ascending(q_BsNH, k_BtMH, v_BtMH, call)
    if call.ring.degree > 1:
        out, lse = ring_attention(q, pack_kv(k, v), call.ring_group, call.attend)
    else:
        attention = PartialAttention(q)
        attention.add(k, v, call.ring_group.tiles(0), call.attend)
        out, lse = attention.result()
    return Result(_in_order(out, call.query_order.to_held), lse)


def _ulysses_forward(
    q_BsNH: torch.Tensor,
    k_BtMH: torch.Tensor,
    v_BtMH: torch.Tensor,
    call: AttentionCall,
    keep: bool,
) -> Result:
    """Attention with heads exchanged for tokens before, and back after."""
    has_ring = call.ring.degree > 1
    q_BSnH, kv_TBmH = tokens_to_heads(
        q_BsNH, k_BtMH, v_BtMH, call.ulysses_group, contiguous_kv=has_ring
    )
    del q_BsNH, k_BtMH, v_BtMH
    if keep and not has_ring:  # they may be views of one buffer
        q_BSnH, kv_TBmH = q_BSnH.transpose(0, 1).clone().transpose(0, 1), kv_TBmH.clone()
    q_SBnH = _in_order(q_BSnH.transpose(0, 1), call.query_order.to_ascending, dim=0)
    del q_BSnH
    kv_TBmH = _in_order(kv_TBmH, call.key_order.to_ascending, dim=0)
    out_BSnH, lse_BSn = ring_attention(
        q_SBnH.transpose(0, 1), kv_TBmH, call.ring_group, call.attend, keep_block=keep
    )
    heads = HeadTensors(q_SBnH, kv_TBmH, out_BSnH) if keep else None
    del q_SBnH, kv_TBmH  # free them before heads_to_tokens allocates
    out_BSnH = _in_order(out_BSnH, call.query_order.to_held)
    return Result(heads_to_tokens(out_BSnH, call.ulysses_group), lse_BSn, heads)


Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""``dq_BsNH``, ``dk_BtMH`` and ``dv_BtMH`` of this rank's tokens, complete."""


def backward(grad_out_BsNH: torch.Tensor, saved: SavedTensors, call: AttentionCall) -> Gradients:
    """Gradients without a Ulysses group.

    Args:
        grad_out_BsNH: Gradient of the output.
        saved: Inputs and output of the forward pass; its log-sum-exp, ascending.
        call: The call.
    """
    q, k, v = _ascending(saved.q, saved.k, saved.v, call)
    out = _in_order(saved.out, call.query_order.to_ascending)
    kv_TBmH = pack_kv(k, v) if call.ring.degree > 1 else k[:0]
    return _ring_backward(grad_out_BsNH, SavedTensors(q, k, v, out, saved.lse), kv_TBmH, call)


def ulysses_backward(
    grad_out_BsNH: torch.Tensor, lse_BSn: torch.Tensor, heads: HeadTensors, call: AttentionCall
) -> Gradients:
    """Gradients with a Ulysses group.

    Args:
        grad_out_BsNH: Gradient of the output.
        lse_BSn: Log-sum-exp of the forward pass.
        heads: What else it kept.
        call: The call.
    """
    group, (q_SBnH, kv_TBmH, out_BSnH) = call.ulysses_group, heads
    saved = SavedTensors(q_SBnH.transpose(0, 1), *split_kv(kv_TBmH), out_BSnH, lse_BSn)
    gradients = _ring_backward(queries_to_heads(grad_out_BsNH, group), saved, kv_TBmH, call)
    return gradients_to_tokens(*gradients, group)


def _ring_backward(
    grad_out_BSnH: torch.Tensor, saved: SavedTensors, kv_TBmH: torch.Tensor, call: AttentionCall
) -> Gradients:
    """Gradients of this rank's block and heads, in the order in which it holds the tokens.

    Args:
        grad_out_BSnH: Gradient of the output, as held.
        saved: Tensors of the forward pass, ascending.
        kv_TBmH: Keys and values in one buffer; not read without a ring.
        call: The call.
    """
    grad_out_BSnH = _in_order(grad_out_BSnH, call.query_order.to_ascending)
    dq, dk, dv = ring_attention_backward(
        grad_out_BSnH, saved, kv_TBmH, call.ring_group, call.attend_backward
    )
    dk, dv = (_in_order(gradient, call.key_order.to_held) for gradient in (dk, dv))
    return _in_order(dq, call.query_order.to_held), dk, dv


def _ascending(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v with tokens in ascending order."""
    q = _in_order(q, call.query_order.to_ascending)
    k, v = (_in_order(tensor, call.key_order.to_ascending) for tensor in (k, v))
    return q, k, v


def _in_order(tensor: torch.Tensor, rows: Sequence[slice], dim: int = 1) -> torch.Tensor:
    """Slices of a dimension, one after the other; the tensor as it is if there is at most one."""
    if len(rows) < 2:
        return tensor
    parts = [tensor.narrow(dim, each.start, each.stop - each.start) for each in rows]
    return torch.cat(parts, dim=dim)
