"""Kernels that torch itself provides.

Their operations take ``[B, n, s, H]``. The backward passes are called as torch's own context
parallelism calls them (``torch/distributed/tensor/experimental/_context_parallel``); without
dropout, the state of the random generator that they take is not read.

Repeatability is as in ``aten/src/ATen/native/transformers/cuda/attention_backward.cu``: flash reads
torch's global flag, efficient adds the parts of dq in any order when it splits the keys, and cuDNN
is not asked for its deterministic algorithm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from longtake.errors import KernelError
from longtake.parallel.kernels.grouped_heads import repeat_heads, sum_groups
from longtake.parallel.kernels.kernel import (
    KernelNeeds,
    KernelOptions,
    SavedTensors,
    torch_is_deterministic,
)

_Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_EFFICIENT_LSE_MULTIPLE = 32
"""Multiple to which the efficient kernel pads the rows of its log-sum-exp, except on ROCm."""


def cpu_flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    # contiguous keys per head: 2 % faster in float32, 12 % in bfloat16
    k, v = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q.transpose(1, 2), k, v, 0.0, options.causal, scale=options.scale)
    return out.transpose(1, 2), lse.transpose(1, 2)


def cpu_flash_backward(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> _Gradients:
    """Backward pass of :func:`cpu_flash`."""
    grad_out, q, k, v, out, lse = (tensor.transpose(1, 2) for tensor in (grad_out, *saved))
    k, v = k.contiguous(), v.contiguous()  # 1 % faster
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    gradients = backward(grad_out, q, k, v, out, lse, 0.0, options.causal, scale=options.scale)
    return _tokens_first(gradients)


def sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, None]:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=options.causal, scale=options.scale, enable_gqa=grouped
    )
    return out.transpose(1, 2), None


def sdpa_flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        0.0,
        options.causal,
        scale=options.scale,
    )
    return out.transpose(1, 2), lse.transpose(1, 2)


def sdpa_flash_backward(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> _Gradients:
    """Backward pass of :func:`sdpa_flash`.

    Raises:
        KernelError: It must be repeatable, and torch's flag was unset since the forward pass.
    """
    if options.deterministic and not torch_is_deterministic():
        raise KernelError(
            "deterministic=True with kernel='sdpa-flash' needs torch's flag in the backward pass "
            "too: keep torch.use_deterministic_algorithms(True), or take kernel='sdpa-efficient'"
        )
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *_heads_first(grad_out, saved),
        None,
        None,
        saved.q.shape[1],
        saved.k.shape[1],
        0.0,
        options.causal,
        *_no_dropout_state(saved.q),
        scale=options.scale,
    )
    return _tokens_first(gradients)


def sdpa_flash_backward_refusal(needs: KernelNeeds) -> str | None:
    """The gap that torch's ``sdp_utils.cpp`` leaves: too little shared memory for these sizes."""
    if not 192 < needs.head_size <= 224 or torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(needs.device)
    if (major, minor) == (8, 0) or major in (9, 10, 11):
        return None
    return f"has no backward pass of head sizes 193 to 224 on capability {major}.{minor}"


def sdpa_cudnn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    if _is_too_short_for_cudnn(q, k):
        return sdpa_flash(q, k, v, options)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        None,
        True,
        0.0,
        options.causal,
        scale=options.scale,
    )
    return out.transpose(1, 2), lse.reshape(out.shape[:3]).transpose(1, 2)  # lse [B, n, s, 1]


def sdpa_cudnn_backward(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> _Gradients:
    """Backward pass of :func:`sdpa_cudnn`."""
    if _is_too_short_for_cudnn(saved.q, saved.k):
        return sdpa_flash_backward(grad_out, saved, options)
    *tensors, lse = _heads_first(grad_out, saved)
    gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *tensors,
        lse.unsqueeze(-1),
        *_no_dropout_state(saved.q),
        None,
        None,
        None,
        saved.q.shape[1],
        saved.k.shape[1],
        0.0,
        options.causal,
        scale=options.scale,
    )
    return _tokens_first(gradients)


def sdpa_cudnn_backward_refusal(needs: KernelNeeds) -> str | None:
    """Wrong gradients of lengths that are no multiples of 128 until cuDNN 9.15.

    github.com/pytorch/pytorch/issues/169849, github.com/NVIDIA/cudnn-frontend/issues/160.
    """
    version = torch.backends.cudnn.version()
    if version is not None and version > 91500:
        return None
    return f"needs cuDNN 9.15.1 or later for the backward pass; torch has {version}"


def _is_too_short_for_cudnn(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether there is a single query or key, which not every version of cuDNN takes."""
    return min(q.shape[1], k.shape[1]) == 1


def sdpa_efficient(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = repeat_heads(k, q.shape[2]), repeat_heads(v, q.shape[2])
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        None,
        True,
        0.0,
        options.causal,
        scale=options.scale,
    )
    return out.transpose(1, 2), lse[..., : q.shape[1]].transpose(1, 2)  # lse [B, n, padded s]


def sdpa_efficient_backward(
    grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> _Gradients:
    """Backward pass of :func:`sdpa_efficient`.

    The operation below SDPA's takes ``[B, s, n, H]``, and the number of parts of the keys.
    """
    q, k, v, out, lse = saved
    num_queries, num_heads, num_kv_heads = q.shape[1], q.shape[2], k.shape[2]
    lse = lse.transpose(1, 2)
    if torch.version.hip is None:  # inf in the added rows: their probabilities are 0
        lse = F.pad(lse, (0, -num_queries % _EFFICIENT_LSE_MULTIPLE), value=torch.inf)
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
        grad_out.contiguous(),
        q,
        repeat_heads(k, num_heads),
        repeat_heads(v, num_heads),
        None,
        out.contiguous(),  # its stride between tokens is not read
        None,
        None,
        num_queries,
        k.shape[1],
        lse.contiguous(),
        0.0,
        *_no_dropout_state(q),
        int(options.causal),  # 1: the mask starts at the top left
        False,
        scale=options.scale,
        num_splits_key=1 if options.deterministic else None,
    )
    return dq, sum_groups(dk, num_kv_heads), sum_groups(dv, num_kv_heads)


def _tokens_first(gradients: _Gradients) -> _Gradients:
    """dq, dk and dv of ``[B, n, s, H]`` as ``[B, s, n, H]``."""
    dq, dk, dv = gradients
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def _heads_first(grad_out: torch.Tensor, saved: SavedTensors) -> list[torch.Tensor]:
    """grad_out, q, k, v and out as ``[B, n, s, H]``, and the contiguous lse ``[B, n, s]``.

    All but q, k and v are contiguous in ``[B, s, n, H]``, the layout of the forward passes.
    """
    q, k, v, out, lse = saved
    tensors = (grad_out.contiguous(), q, k, v, out.contiguous())
    return [*(tensor.transpose(1, 2) for tensor in tensors), lse.transpose(1, 2).contiguous()]


def _no_dropout_state(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Seed and offset of the random generator, which are passed and not read."""
    state = torch.empty((), dtype=torch.int64, device=q.device)
    return state, state
