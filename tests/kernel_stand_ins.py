"""What stand-ins of GPU kernels share: they compute in float64 on the CPU.

A stand-in has the signature of the function that it stands for, checks what the real one would
refuse or misread, and returns what it would return, so that a wrong call shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longtake.parallel import KERNELS
from longtake.parallel.kernels.kernel import KernelOptions, SavedTensors
from tests import reference_attention as reference

BY_NAME = {kernel.name: kernel for kernel in KERNELS}
CASES = [
    (heads, causal) for heads in [(6, 2), (4, 4), (3, 1)] for causal in (False, True)
]  # (query heads, KV heads), causal
SCALE = 0.3


def check_kernel(name: str, heads: tuple[int, int], causal: bool, num_tokens: int = 11) -> None:
    """Compare a kernel's output, log-sum-exp and gradients with the reference.

    The gradients are taken over all keys, and over two parts of the keys, as in a ring.
    """
    torch.manual_seed(0)
    kernel, (num_heads, num_kv_heads) = BY_NAME[name], heads
    rows = torch.randn(num_tokens, 2, num_heads + 2 * num_kv_heads, 16).transpose(0, 1)
    q, k, v = rows.split([num_heads, num_kv_heads, num_kv_heads], dim=2)
    q = q if causal else q[:, :7]
    options = KernelOptions(SCALE, causal, deterministic=kernel.repeatable == "yes")
    out, lse = kernel.run(q, k, v, options)
    assert lse is not None and kernel.backward is not None
    for actual, expected in zip((out, lse), reference.attention(q, k, v, options), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)

    grad_out = torch.randn(q.shape[1], 2, num_heads, 16).transpose(0, 1)
    out, lse = (tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (out, lse))
    parts = [slice(None)] if causal else [slice(0, 4), slice(4, None)]
    gradients = [
        kernel.backward(grad_out, SavedTensors(q, k[:, part], v[:, part], out, lse), options)
        for part in parts
    ]
    dq, dk, dv = zip(*gradients, strict=True)
    summed = torch.stack(dq).sum(0), torch.cat(dk, dim=1), torch.cat(dv, dim=1)
    expected_gradients = reference.gradients(grad_out, q, k, v, options)
    for actual, expected in zip(summed, expected_gradients, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The contiguous output ``[B, s, n, H]`` and log-sum-exp ``[B, n, s]``, as they all return."""
    out, lse = reference.attention(q, k, v, KernelOptions(scale, causal))
    return out.float(), lse.transpose(1, 2).contiguous().float()


def backward(
    grad_out: torch.Tensor, inputs: Sequence[torch.Tensor], scale: float, causal: bool
) -> tuple[torch.Tensor, ...]:
    """Gradients from (q, k, v, out, lse) in that order, with lse ``[B, n, s]``."""
    q, k, v, out, lse = inputs
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1]) and lse.dtype == torch.float32
    assert all(tensor.stride(-1) == 1 for tensor in (grad_out, q, k, v, out))
    saved = SavedTensors(q, k, v, out, lse.transpose(1, 2))
    gradients = reference.block_gradients(grad_out, saved, KernelOptions(scale, causal))
    return tuple(gradient.float() for gradient in gradients)
