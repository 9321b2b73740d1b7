"""Benchmarks the local attention kernels of one device: time and error, forward and backward."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.attention.rank import Shape
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import KERNELS, KernelNeeds
from longtake.parallel.kernels.attend import HeadRuns, attend, attend_backward
from longtake.parallel.kernels.kernel import Kernel, KernelOptions, SavedTensors

_WHOLE: HeadRuns = [(slice(None), slice(None))]
_SAMPLED_QUERIES = 16


@dataclass
class _Pass:
    """One pass of one kernel with one mask.

    Attributes:
        kernel: The kernel.
        column: Name of its column.
        call: The pass.
        error: Largest difference from the pass in float64, over some of the queries.
        seconds: Time of each call.
    """

    kernel: Kernel
    column: str
    call: Callable[[], torch.Tensor]
    error: float
    seconds: list[float] = field(default_factory=list)


def kernel_table(shape: Shape, dtype: torch.dtype, rounds: int, device_type: str) -> str:
    """Time all kernels on one shape, interleaved; returns a Markdown table."""
    device = torch.device("cuda", 0) if device_type == "cuda" else torch.device("cpu")
    needs = KernelNeeds(device, dtype, shape[3], log_sum_exp=False)
    refusals = {kernel: kernel.unsupported_reason(needs) for kernel in KERNELS}
    able = [kernel for kernel, refusal in refusals.items() if refusal is None]
    passes = _passes(able, shape, needs)
    for _ in range(rounds):
        for each in random.sample(passes, len(passes)):  # the previous one affects a GPU's clock
            start = time.perf_counter()
            each.call()
            if device_type == "cuda":
                torch.cuda.synchronize()
            each.seconds.append(time.perf_counter() - start)
    columns = list(dict.fromkeys(each.column for each in passes))
    rows = []
    for kernel, refusal in refusals.items():
        own = {each.column: each for each in passes if each.kernel is kernel}
        cells = [f"cannot: {refusal}"] if refusal else ["none"] * len(columns)
        for index, column in enumerate(columns):
            if column in own:
                median_ms = statistics.median(own[column].seconds) * 1e3
                cells[index] = f"{median_ms:.2f} ({own[column].error:.0e})"
        rows.append([kernel.name, *cells])
    return markdown_table(["kernel", *(f"{column} ms (error)" for column in columns)], rows)


def _passes(able: list[Kernel], shape: Shape, needs: KernelNeeds) -> list[_Pass]:
    """The forward pass of each kernel, and its backward pass if it has one, with both masks."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad_out = (
        torch.randn(shape, generator=generator).to(needs.device, needs.dtype) for _ in range(4)
    )
    sampled = torch.linspace(0, shape[1] - 1, _SAMPLED_QUERIES, device=needs.device).long()
    passes = []
    for causal in (False, True):
        options = KernelOptions(shape[3] ** -0.5, causal)
        exact = _exact(q, k, v, grad_out, sampled, causal)
        for kernel in able:
            out, lse = attend(kernel, q, k, v, options, _WHOLE)
            calls: list[Callable[[], torch.Tensor]] = [partial(_forward, kernel, q, k, v, options)]
            if kernel.unsupported_reason(replace(needs, backward=True)) is None:
                assert lse is not None
                saved = SavedTensors(q, k, v, out, lse)
                calls.append(partial(_dq, kernel, grad_out, saved, options))
            for name, call, expected in zip(("forward", "backward"), calls, exact, strict=False):
                error = float((call()[:, sampled].double() - expected).abs().max())
                passes.append(_Pass(kernel, f"causal {name}" if causal else name, call, error))
    return passes


def _forward(
    kernel: Kernel, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: KernelOptions
) -> torch.Tensor:
    return attend(kernel, q, k, v, options, _WHOLE)[0]


def _dq(
    kernel: Kernel, grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions
) -> torch.Tensor:
    return attend_backward(kernel, grad_out, saved, options, _WHOLE)[0]


def _exact(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad_out: torch.Tensor,
    sampled: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and dq of some queries in float64, one head at a time."""
    positions = torch.arange(k.shape[1], device=k.device)
    mask = sampled[:, None] >= positions if causal else None
    outs, dqs = [], []
    tensors = (q[:, sampled], k, v, grad_out[:, sampled])
    for heads in zip(*(t.transpose(1, 2).split(1, dim=1) for t in tensors), strict=True):
        query, key, value, grad = (head.double() for head in heads)
        query.requires_grad_()
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        outs.append(out.detach())
        dqs.append(torch.autograd.grad(out, query, grad)[0])
    out, dq = (torch.cat(parts, dim=1).transpose(1, 2) for parts in (outs, dqs))
    return out, dq
