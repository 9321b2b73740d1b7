"""Runs a kernel on one rank's tensors, whatever their heads and strides, empty ones included.

No kernel is called with an empty tensor: the CPU kernel would crash.

Legend: B batch, s queries, t keys, n query heads, m KV heads, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longtake.parallel.kernels.kernel import Kernel, KernelOptions, SavedTensors

HeadRuns = Sequence[tuple[slice, slice]]
"""Pairs of (query heads, KV heads) with a constant group size, from :meth:`HeadShards.runs`."""


def attend(
    kernel: Kernel,
    q_BsnH: torch.Tensor,
    k_BtmH: torch.Tensor,
    v_BtmH: torch.Tensor,
    options: KernelOptions,
    head_runs: HeadRuns,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Local attention of any number of queries and heads, including zero, over at least one key.

    Args:
        kernel: The kernel.
        q_BsnH: Queries.
        k_BtmH: Keys.
        v_BtmH: Values.
        options: Scale and mask.
        head_runs: Runs of heads.

    Returns:
        ``out_BsnH`` and ``lse_Bsn``, as from a kernel.
    """
    if q_BsnH.numel() == 0:
        wide = torch.promote_types(q_BsnH.dtype, torch.float32)
        return torch.empty_like(q_BsnH), q_BsnH.new_empty(q_BsnH.shape[:3], dtype=wide)
    assert k_BtmH.numel() > 0, "attention over no keys is not defined"
    q_BsnH, k_BtmH, v_BtmH = map(_heads_last, (q_BsnH, k_BtmH, v_BtmH))
    if len(head_runs) == 1:
        return kernel.run(q_BsnH, k_BtmH, v_BtmH, options)
    parts = [
        kernel.run(q_BsnH[:, :, query], k_BtmH[:, :, kv], v_BtmH[:, :, kv], options)
        for query, kv in head_runs
    ]
    lses = [lse for _, lse in parts if lse is not None]
    return torch.cat([out for out, _ in parts], dim=2), torch.cat(lses, dim=2) if lses else None


def attend_backward(
    kernel: Kernel,
    grad_out_BsnH: torch.Tensor,
    saved: SavedTensors,
    options: KernelOptions,
    head_runs: HeadRuns,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of local attention, of any number of queries and heads, including zero.

    Args:
        kernel: A kernel with a backward pass.
        grad_out_BsnH: Gradient of the output.
        saved: Tensors of the forward pass; ``out`` and ``lse`` of the attention over all keys.
        options: Scale and mask.
        head_runs: Runs of heads.

    Returns:
        ``dq_BsnH``, ``dk_BtmH`` and ``dv_BtmH``: this block of keys' part of the gradients.
    """
    assert kernel.backward is not None, "select_kernel gives a kernel with a backward pass"
    if grad_out_BsnH.numel() == 0:
        return tuple(torch.zeros_like(tensor) for tensor in saved[:3])  # type: ignore[return-value]
    grad_out_BsnH = _heads_last(grad_out_BsnH)
    q, k, v, out, lse = saved
    q, k, v, out = map(_heads_last, (q, k, v, out))
    if len(head_runs) == 1:
        return kernel.backward(grad_out_BsnH, SavedTensors(q, k, v, out, lse), options)
    parts = [
        kernel.backward(
            grad_out_BsnH[:, :, query],
            SavedTensors(
                q[:, :, query], k[:, :, kv], v[:, :, kv], out[:, :, query], lse[:, :, query]
            ),
            options,
        )
        for query, kv in head_runs
    ]
    dq, dk, dv = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
    return dq, dk, dv


def _heads_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
