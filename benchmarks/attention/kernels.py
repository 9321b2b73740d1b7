"""Benchmarks the local attention kernels of one device: time and error of each."""

from __future__ import annotations

import random
import statistics
import time

import torch

from benchmarks.attention.rank import Shape, exact
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import KERNELS, KernelNeeds
from longtake.parallel.kernels.attend import attend
from longtake.parallel.kernels.kernel import Kernel, KernelOptions


def kernel_table(shape: Shape, dtype: torch.dtype, rounds: int, device_type: str) -> str:
    """Time all kernels on one shape, interleaved; returns a Markdown table."""
    device = torch.device("cuda", 0) if device_type == "cuda" else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    needs = KernelNeeds(device, dtype, shape[3], log_sum_exp=False)
    refusals = {kernel: kernel.unsupported_reason(needs) for kernel in KERNELS}
    able = [kernel for kernel, refusal in refusals.items() if refusal is None]
    sampled = torch.linspace(0, shape[1] - 1, 16, device=device).long()
    expected = exact(q[:, sampled], k, v)

    def run(kernel: Kernel) -> torch.Tensor:
        heads = [(slice(None), slice(None))]
        return attend(kernel, q, k, v, KernelOptions(shape[3] ** -0.5), heads)[0]

    errors = {
        kernel: (run(kernel)[:, sampled].double() - expected).abs().max().item() for kernel in able
    }
    seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in able}
    for _ in range(rounds):
        for kernel in random.sample(able, len(able)):  # the previous kernel affects a GPU's clock
            start = time.perf_counter()
            run(kernel)
            if device_type == "cuda":
                torch.cuda.synchronize()
            seconds[kernel].append(time.perf_counter() - start)
    first = statistics.median(seconds[able[0]])
    rows = []
    for kernel, refusal in refusals.items():
        if refusal is not None:
            rows.append([kernel.name, f"cannot: {refusal}"])
            continue
        median = statistics.median(seconds[kernel])
        figures = f"{median * 1e3:.2f}", f"{median / first:.2f}", f"{errors[kernel]:.1e}"
        rows.append([kernel.name, *figures])
    return markdown_table(["kernel", "median ms", "ratio to auto", "max error"], rows)
