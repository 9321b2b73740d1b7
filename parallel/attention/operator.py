"""The custom operator of attention across ranks, ``torch.ops.longtake.usp_attention``.

torch.compile, activation checkpointing and export see one opaque operator: it has a fake
implementation, which computes shapes without communication, and a registered backward pass, which
is an operator too.

Legend: B batch, s and t this rank's query and key tokens, S and T its group's, N query heads, M KV
heads, n and m this rank's, H head size.
"""

from __future__ import annotations

from typing import Any

import torch

from longtake.errors import TensorError
from longtake.parallel.attention import passes
from longtake.parallel.attention.call import AttentionCall
from longtake.parallel.attention.passes import HeadTensors
from longtake.parallel.kernels.kernel import SavedTensors

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""``out_BsNH``, ``lse_BSn``, ``q_SBnH``, ``kv_TBmH``, ``out_BSnH``; what is not kept is empty."""


def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: str, keep: bool) -> Tensors:
    """Attention across ranks, and what its backward pass needs.

    Args:
        q: ``[B, s, N, H]``.
        k: ``[B, t, M, H]``.
        v: ``[B, t, M, H]``.
        call: :meth:`AttentionCall.encode`.
        keep: Whether a backward pass follows.
    """
    result = passes.forward(q, k, v, AttentionCall.decode(call), keep=keep)
    out = result.out_BsNH.contiguous()
    lse, q_heads, kv_heads, out_heads = (q.new_empty(0) for _ in range(4))
    if keep:
        assert result.lse_BSn is not None, "select_kernel gives a kernel with a log-sum-exp"
        lse = result.lse_BSn.contiguous()
    if result.heads is not None:
        q_heads, kv_heads, out_heads = (tensor.contiguous() for tensor in result.heads)
    return out, lse, q_heads, kv_heads, out_heads


usp_attention = torch.library.custom_op("longtake::usp_attention", run, mutates_args=())


@usp_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: str, keep: bool) -> Tensors:
    described = AttentionCall.decode(call)
    batch, own_tokens, num_heads, head_size = q.shape
    num_queries, num_keys = (
        sum(map(len, order.held)) for order in (described.query_order, described.key_order)
    )
    rank, heads = described.ulysses.rank, described.heads
    n, m = len(heads.query[rank]), len(heads.kv[rank])
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_empty((batch, own_tokens, num_heads, head_size))
    lse, q_heads, kv_heads, out_heads = (q.new_empty(0) for _ in range(4))
    if keep:
        lse = q.new_empty((batch, num_queries, n), dtype=wide)
    if keep and described.ulysses.degree > 1:
        q_heads = q.new_empty((num_queries, batch, n, head_size))
        kv_heads = q.new_empty((num_keys, batch, 2 * m, head_size))
        out_heads = q.new_empty((batch, num_queries, n, head_size))
    return out, lse, q_heads, kv_heads, out_heads


def run_backward(
    grad_out: torch.Tensor, saved: list[torch.Tensor], call: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v.

    Args:
        grad_out: ``[B, s, N, H]``.
        saved: ``lse``, ``q_SBnH``, ``kv_TBmH`` and ``out_BSnH`` with a Ulysses group; otherwise q,
            k, v, ``out`` and ``lse``.
        call: :meth:`AttentionCall.encode`.
    """
    described = AttentionCall.decode(call)
    if described.ulysses.degree > 1:
        lse, *heads = saved
        gradients = passes.ulysses_backward(grad_out, lse, HeadTensors(*heads), described)
    else:
        gradients = passes.backward(grad_out, SavedTensors(*saved), described)
    dq, dk, dv = (gradient.contiguous() for gradient in gradients)
    return dq, dk, dv


usp_attention_backward = torch.library.custom_op(
    "longtake::usp_attention_backward", run_backward, mutates_args=()
)


@usp_attention_backward.register_fake
def _(
    grad_out: torch.Tensor, saved: list[torch.Tensor], call: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    described = AttentionCall.decode(call)
    batch, _, _, head_size = grad_out.shape
    num_keys = described.num_own_keys
    dk = grad_out.new_empty((batch, num_keys, described.num_kv_heads, head_size))
    return grad_out.new_empty(grad_out.shape), dk, torch.empty_like(dk)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    q, k, v, call, _ = inputs
    out, lse, *heads = output
    ctx.call, ctx.like_out = call, {"size": out.shape, "dtype": out.dtype, "device": out.device}
    in_heads = AttentionCall.decode(call).ulysses.degree > 1
    ctx.save_for_backward(*((lse, *heads) if in_heads else (q, k, v, out, lse)))
    ctx.mark_non_differentiable(lse, *heads)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: torch.Tensor | None, *_: None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise TensorError(
            "usp_attention has no second derivative: leave out create_graph=True, or use "
            "scaled_dot_product_attention in one process"
        )
    if grad_out is None:  # the other ranks may have one, and wait for this one
        grad_out = torch.zeros(**ctx.like_out)
    return *usp_attention_backward(grad_out, list(ctx.saved_tensors), ctx.call), None, None


usp_attention.register_autograd(_backward, setup_context=_keep)
