"""Attention and its gradients by their definition, in float64.

Legend: B batch, s queries, t keys, n query heads, m KV heads, H head size.
"""

from __future__ import annotations

import torch

from longtake.parallel.kernels.kernel import KernelOptions, SavedTensors

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output ``[B, s, n, H]`` and the log-sum-exp ``[B, s, n]``."""
    group_size = q.shape[2] // k.shape[2]
    k, v = (t.double().repeat_interleave(group_size, dim=2) for t in (k, v))
    scores = _scores(q, k, options)
    return torch.einsum("bsnt,btnh->bsnh", scores.softmax(-1), v), scores.logsumexp(-1)


def gradients(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    options: KernelOptions,
) -> Gradients:
    """dq, dk and dv, by automatic differentiation of :func:`attention`."""
    q, k, v = (tensor.detach().double().requires_grad_() for tensor in (q, k, v))
    with torch.enable_grad():
        out, _ = attention(q, k, v, options)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), grad_out.double())
    return dq, dk, dv


def block_gradients(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> Gradients:
    """A block of keys' part of the gradients, by the formula, from ``out`` and ``lse`` over all."""
    q, k, v, out, lse = (tensor.double() for tensor in saved)
    grad_out, num_kv_heads = grad_out.double(), k.shape[2]
    k, v = (t.repeat_interleave(q.shape[2] // num_kv_heads, dim=2) for t in (k, v))
    shares = (_scores(q, k, options) - lse.unsqueeze(-1)).exp()
    grad_shares = torch.einsum("bsnh,btnh->bsnt", grad_out, v)
    grad_scores = shares * (grad_shares - (grad_out * out).sum(-1, keepdim=True)) * options.scale
    dk = torch.einsum("bsnt,bsnh->btnh", grad_scores, q).unflatten(2, (num_kv_heads, -1))
    dv = torch.einsum("bsnt,bsnh->btnh", shares, grad_out).unflatten(2, (num_kv_heads, -1))
    return torch.einsum("bsnt,btnh->bsnh", grad_scores, k), dk.sum(3), dv.sum(3)


def _scores(q: torch.Tensor, k: torch.Tensor, options: KernelOptions) -> torch.Tensor:
    scores = torch.einsum("bsnh,btnh->bsnt", q.double(), k.double()) * options.scale
    if not options.causal:
        return scores
    assert q.shape[1] == k.shape[1], "causal blocks have as many queries as keys"
    future = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future.unsqueeze(1), -torch.inf)
