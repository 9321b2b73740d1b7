"""Kernels of other libraries, imported when they are called.

Their backward passes with a given log-sum-exp are private functions, except xformers'. Read from:
flash-attn 2.6.3, 2.7.4 and 2.8.3 (``flash_attn/flash_attn_interface.py``, and FlashAttention 3 in
``hopper/flash_attn_interface.py``, there and on the main branch), flash-attn-4 4.0.0b3 to b36
(``flash_attn/cute/interface.py``), xformers 0.0.35 (``xformers/ops/fmha``).

Legend: B batch, s queries, t keys, n query heads, m KV heads, H head size.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from longtake.parallel.kernels.grouped_heads import repeat_heads, sum_groups
from longtake.parallel.kernels.kernel import KernelNeeds, KernelOptions, SavedTensors

FLASH_ATTN_2 = "flash_attn.flash_attn_interface"
FLASH_ATTN_3 = "flash_attn_interface"
FLASH_ATTN_4 = "flash_attn.cute.interface"
FLASH_ATTN_4_INSTALL = "pip install 'longtake[flash4]'"
XFORMERS = "xformers.ops.fmha"

_Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_GIVEN = frozenset({"q", "k", "v", "softmax_scale", "causal"})


def flash_attn_2(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    function = importlib.import_module(FLASH_ATTN_2).flash_attn_func
    out, lse, *_ = function(
        q, k, v, softmax_scale=options.scale, causal=options.causal, return_attn_probs=True
    )
    return out, lse.transpose(1, 2)


def flash_attn_2_backward(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> _Gradients:
    """Backward pass of :func:`flash_attn_2`, repeatable on request: it adds dq up in order."""
    backward = importlib.import_module(FLASH_ATTN_2)._flash_attn_backward
    window: dict[str, Any] = {"window_size_left": -1, "window_size_right": -1}
    if "window_size" in _parameters(backward):  # before 2.7
        window = {"window_size": (-1, -1)}
    gradients = _new_gradients(saved)
    backward(
        grad_out,
        *_kernel_inputs(saved),
        *gradients,
        dropout_p=0.0,
        softmax_scale=options.scale,
        causal=options.causal,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=options.deterministic,
        **window,
    )
    return gradients


def flash_attn_3(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    module = importlib.import_module(FLASH_ATTN_3)
    function = module.flash_attn_func
    extra: dict[str, Any] = {}
    if "return_attn_probs" in _parameters(function):
        extra = {"return_attn_probs": True}
    elif "qv" in _parameters(function):  # releases of 2025 return no log-sum-exp, as 2.8.3 does
        function = module._flash_attn_forward
        extra = dict.fromkeys(_required_parameters(function) - _GIVEN)
    out, lse, *_ = function(
        q=q, k=k, v=v, softmax_scale=options.scale, causal=options.causal, **extra
    )
    return out, lse.transpose(1, 2)


def flash_attn_3_backward(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> _Gradients:
    """Backward pass of :func:`flash_attn_3`.

    Not asked to be repeatable: releases before the autumn of 2025 drop that argument in silence
    (github.com/Dao-AILab/flash-attention/pull/1766).
    """
    backward = importlib.import_module(FLASH_ATTN_3)._flash_attn_backward
    gradients = _new_gradients(saved)
    lengths = (None,) * 6  # of packed sequences
    # by position, since the last is named causal in some releases and is_causal in others
    backward(grad_out, *_kernel_inputs(saved), *lengths, *gradients, options.scale, options.causal)
    return gradients


def flash_attn_3_backward_refusal(needs: KernelNeeds) -> str | None:
    """The betas of 2024 take other arguments, and fewer head sizes than their forward pass."""
    parameters = _parameters(importlib.import_module(FLASH_ATTN_3)._flash_attn_backward)
    if "softmax_scale" in parameters and "cu_seqlens_q" not in parameters:
        return "is a beta of 2024, whose backward pass is not supported: build a later one"
    return None


def flash_attn_4(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    forward = importlib.import_module(FLASH_ATTN_4)._flash_attn_fwd
    out, lse, *_ = forward(
        q, k, v, softmax_scale=options.scale, causal=options.causal, return_lse=True
    )
    return out, lse.transpose(1, 2)


def flash_attn_4_backward(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> _Gradients:
    """Backward pass of :func:`flash_attn_4`, repeatable on request: it adds up in order."""
    backward = importlib.import_module(FLASH_ATTN_4)._flash_attn_bwd
    *tensors, lse = _kernel_inputs(saved)
    dq, dk, dv, *_ = backward(
        *tensors,
        grad_out,
        lse,
        softmax_scale=options.scale,
        causal=options.causal,
        deterministic=options.deterministic,
    )
    return dq, dk, dv


def flash_attn_4_backward_refusal(needs: KernelNeeds) -> str | None:
    """Betas before the eighth assert that a repeatable backward pass is not asked of Hopper."""
    beta = re.fullmatch(r"4\.0\.0b(\d+)", _version("flash-attn-4"))
    if not needs.deterministic or beta is None or int(beta[1]) >= 8:
        return None
    if torch.cuda.get_device_capability(needs.device)[0] != 9:
        return None
    return f"is beta {beta[1]}, which is not repeatable on this device: {FLASH_ATTN_4_INSTALL}"


def xformers(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    fmha = importlib.import_module(XFORMERS)
    batch, num_tokens, num_heads, head_size = q.shape
    group_size = num_heads // k.shape[2]
    if group_size > 1:  # groups are a separate dimension: [B, s, m, n / m, H]
        q = q.reshape(batch, num_tokens, k.shape[2], group_size, head_size)
        k, v = (t.unsqueeze(3).expand(-1, -1, -1, group_size, -1) for t in (k, v))
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(
        q, k, v, _xformers_mask(fmha, options), scale=options.scale
    )
    lse = lse[..., :num_tokens].reshape(batch, num_heads, num_tokens)  # rows may be padded
    return out.reshape(batch, num_tokens, num_heads, head_size), lse.transpose(1, 2)


def xformers_backward(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> _Gradients:
    """Backward pass of :func:`xformers`, which takes no separate dimension of groups.

    Not repeatable: it selects a kernel itself, and ``flash.BwOp.IS_DETERMINISTIC`` is False.
    """
    fmha = importlib.import_module(XFORMERS)
    q, k, v, out, lse = _kernel_inputs(saved)
    num_heads, num_kv_heads = q.shape[2], k.shape[2]
    dq, dk, dv = fmha.memory_efficient_attention_backward(
        grad_out,
        out,
        lse,
        q,
        repeat_heads(k, num_heads),
        repeat_heads(v, num_heads),
        _xformers_mask(fmha, options),
        scale=options.scale,
    )
    return dq, sum_groups(dk, num_kv_heads), sum_groups(dv, num_kv_heads)


def _xformers_mask(fmha: Any, options: KernelOptions) -> Any:
    return fmha.LowerTriangularMask() if options.causal else None


def _kernel_inputs(saved: SavedTensors) -> tuple[torch.Tensor, ...]:
    """q, k, v, the contiguous out ``[B, s, n, H]``, and the contiguous lse ``[B, n, s]``."""
    q, k, v, out, lse = saved
    return q, k, v, out.contiguous(), lse.transpose(1, 2).contiguous()


def _new_gradients(saved: SavedTensors) -> _Gradients:
    """Uninitialized, contiguous tensors for dq, dk and dv."""
    dq, dk, dv = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in saved[:3]
    )
    return dq, dk, dv


@cache
def _version(distribution: str) -> str:
    """The version of an installed distribution; empty if its module came another way."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """Names of the parameters; of a torch custom operator only "args" and "kwargs"."""
    return frozenset(inspect.signature(function).parameters)


@cache
def _required_parameters(function: Callable[..., Any]) -> frozenset[str]:
    parameters = inspect.signature(function).parameters.values()
    return frozenset(each.name for each in parameters if each.default is each.empty)
