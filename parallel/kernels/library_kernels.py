"""Kernels of other libraries, imported when they are called."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from longtake.parallel.kernels.kernel import KernelOptions


def flash_attn_2(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    function = importlib.import_module("flash_attn").flash_attn_func
    out, lse, *_ = function(
        q, k, v, softmax_scale=options.scale, causal=options.causal, return_attn_probs=True
    )
    return out, lse.transpose(1, 2)


def flash_attn_3(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    function = importlib.import_module("flash_attn_interface").flash_attn_func
    # early releases always return the log-sum-exp, later ones on demand
    on_demand = "return_attn_probs" in _parameters(function)
    extra = {"return_attn_probs": True} if on_demand else {}
    out, lse, *_ = function(q, k, v, softmax_scale=options.scale, causal=options.causal, **extra)
    return out, lse.transpose(1, 2)


def xformers(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    fmha = importlib.import_module("xformers.ops.fmha")
    batch, num_tokens, num_heads, head_size = q.shape
    group_size = num_heads // k.shape[2]
    if group_size > 1:  # groups are a separate dimension: [B, s, m, n / m, H]
        q = q.reshape(batch, num_tokens, k.shape[2], group_size, head_size)
        k, v = (t.unsqueeze(3).expand(-1, -1, -1, group_size, -1) for t in (k, v))
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, scale=options.scale)
    lse = lse[..., :num_tokens].reshape(batch, num_heads, num_tokens)  # rows may be padded
    return out.reshape(batch, num_tokens, num_heads, head_size), lse.transpose(1, 2)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
