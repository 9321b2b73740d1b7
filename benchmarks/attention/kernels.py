"""Benchmarks the local attention kernels of one device: time and error of each."""

from __future__ import annotations

import random
import statistics
import time

import torch

from benchmarks.attention.reference import exact
from benchmarks.attention.setting import Setting
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import KERNELS, KernelNeeds
from longtake.parallel.kernels.attend import attend, attend_backward
from longtake.parallel.kernels.kernel import Kernel, KernelOptions, SavedTensors

_NUM_SAMPLED = 16
_HEADS = [(slice(None), slice(None))]


class _Bench:
    """The inputs of a setting, and how a kernel runs on them.

    Args:
        setting: The setting.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.device = torch.device("cuda", 0) if setting.device_type == "cuda" else "cpu"
        shape = setting.shape
        self.q, self.k, self.v, self.grad_out = (
            tensor.to(self.device) for tensor in shape.tensors(setting.dtype)
        )
        self._options = KernelOptions(shape.head_size**-0.5, causal=setting.causal)
        self._sampled = torch.linspace(
            0, shape.num_tokens - 1, _NUM_SAMPLED, device=self.device
        ).long()
        self._expected = self._exact()

    def refusals(self) -> dict[Kernel, str | None]:
        """Why each kernel cannot run the setting; None if it can."""
        train = self.setting.train
        needs = KernelNeeds(
            torch.device(self.device),
            self.setting.dtype,
            self.setting.shape.head_size,
            log_sum_exp=train,
            backward=train,
        )
        return {kernel: kernel.unsupported_reason(needs) for kernel in KERNELS}

    def run(self, kernel: Kernel) -> tuple[torch.Tensor, ...]:
        """The output, and with gradients that of q, of a kernel."""
        q, k, v = self.q, self.k, self.v
        out, lse = attend(kernel, q, k, v, self._options, _HEADS)
        if not self.setting.train:
            return (out,)
        assert lse is not None, "kernels with a backward pass return a log-sum-exp"
        saved = SavedTensors(q, k, v, out, lse)
        return out, attend_backward(kernel, self.grad_out, saved, self._options, _HEADS)[0]

    def seconds(self, kernel: Kernel) -> float:
        """Time of one run."""
        start = time.perf_counter()
        self.run(kernel)
        if self.setting.device_type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def error(self, kernel: Kernel) -> float:
        """The largest difference of the sampled queries' output and gradient from float64."""
        computed = (tensor[:, self._sampled].double() for tensor in self.run(kernel))
        pairs = zip(computed, self._expected, strict=True)
        return max((actual - expected).abs().max().item() for actual, expected in pairs)

    def _exact(self) -> tuple[torch.Tensor, ...]:
        q = self.q[:, self._sampled].requires_grad_(self.setting.train)
        out = exact(q, self.k, self.v, causal=self.setting.causal, positions=self._sampled)
        if not self.setting.train:
            return (out,)
        (gradient,) = torch.autograd.grad(out, q, self.grad_out[:, self._sampled].double())
        return out.detach(), gradient


def kernel_table(setting: Setting, rounds: int) -> str:
    """Time all kernels on one setting, interleaved; returns a Markdown table."""
    bench = _Bench(setting)
    refusals = bench.refusals()
    able = [kernel for kernel, refusal in refusals.items() if refusal is None]
    errors = {kernel: bench.error(kernel) for kernel in able}
    seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in able}
    for _ in range(rounds):
        for kernel in random.sample(able, len(able)):  # the previous kernel affects a GPU's clock
            seconds[kernel].append(bench.seconds(kernel))
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
