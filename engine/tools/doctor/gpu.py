"""Checks of torch, GPUs, the links between them, and attention kernels."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from longtake.engine.planning.topology import topology
from longtake.engine.tools.doctor.finding import CheckContext, Finding, gib
from longtake.errors import one_line

if TYPE_CHECKING:
    import torch

    from longtake.parallel import Kernel, KernelNeeds

SLOW_PCIE_BYTES_PER_S = 12e9
"""Less than 16 lanes of PCIe 3.0, or 8 of PCIe 4.0."""
TOLERANCES = {"cpu": 1e-5, "cuda": 2e-2}
"""Largest error of attention in float32 on the CPU and in half precision on a GPU."""


def torch_build(context: CheckContext) -> Iterator[Finding]:
    """The devices and backends torch was built for."""
    import torch
    import torch.distributed as dist

    built_for = "the CPU"
    if torch.version.cuda or torch.version.hip:
        hip = torch.version.hip
        built_for = f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}"
    has = {
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available(),
    }
    backends = " and ".join(name for name, available in has.items() if available) or "no backend"
    message = f"{torch.__version__}, built for {built_for}; torch.distributed has {backends}"
    needed = ["gloo", "nccl"] if context.num_gpus > 1 else ["gloo"]
    missing = " and ".join(name for name in needed if not has[name])
    if missing:
        message += f"; several ranks need {missing}"
        yield Finding(
            "torch", "failure", message, "install torch from pytorch.org, which includes it"
        )
    else:
        yield Finding("torch", "ok", message)


def driver(context: CheckContext) -> Iterator[Finding]:
    """The NVIDIA driver, and whether torch can use it."""
    import torch

    found = topology()
    if context.engine.device == "cpu":
        yield Finding("cuda", "ok", "not checked with device=cpu")
    elif found.broken:
        way_out = "reboot, or load the driver installed last: nvidia-smi must work"
        yield Finding("cuda", "failure", found.reason, way_out)
    elif torch.version.hip and context.num_gpus:
        yield Finding("cuda", "ok", f"ROCm {torch.version.hip}")
    elif not found.gpus and context.engine.device == "cuda":
        way_out = "install the driver, give the container its GPUs, or pass --device cpu"
        yield Finding("cuda", "failure", f"device=cuda, and {found.reason}", way_out)
    elif not found.gpus:
        yield Finding("cuda", "ok", f"{found.reason}: renders on the CPU")
    elif torch.version.cuda is None:
        message = f"driver {found.driver} is installed, but torch {torch.__version__} has no CUDA"
        way_out = "install torch for CUDA, as pytorch.org says, or pass --device cpu"
        yield Finding("cuda", "failure", message, way_out)
    else:
        torch.cuda.init()  # raises the reason that is_available() hides
        supports = f"driver {found.driver} supports CUDA {found.cuda}"
        yield Finding("cuda", "ok", f"{supports}, torch is built for {torch.version.cuda}")


def enough_devices(context: CheckContext) -> Iterator[Finding]:
    """Each GPU, and whether there are enough devices."""
    devices, num_gpus = context.engine.devices, context.num_gpus
    for index in range(num_gpus):
        yield _gpu(index)
    if context.engine.device == "cuda" or num_gpus:
        message = f"devices={devices} with {num_gpus} GPUs here"
        if devices > num_gpus:
            way_out = f"--devices {num_gpus}, or --device cpu" if num_gpus else "--device cpu"
            yield Finding("devices", "failure", message, way_out)
        else:
            yield Finding("devices", "ok", message)
        return
    cores = len(os.sched_getaffinity(0))
    message = f"devices={devices} with {cores} CPU cores here, and no GPU"
    if devices > cores:
        way_out = f"--devices {cores}: ranks on the same core wait for each other"
        yield Finding("devices", "warning", message, way_out)
    else:
        yield Finding("devices", "ok", message)


def _gpu(index: int) -> Finding:
    """One GPU, tried with a small matrix product."""
    import torch

    name, properties = f"gpu {index}", torch.cuda.get_device_properties(index)
    total = properties.total_memory
    message = f"{properties.name}, {gib(total)}, capability {properties.major}.{properties.minor}"
    try:
        free, _ = torch.cuda.mem_get_info(index)
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        correct = float((ones @ ones).sum()) == 64**3
    except RuntimeError as error:
        way_out = "install torch for this GPU and its driver; see whether nvidia-smi lists it"
        return Finding(name, "failure", f"{message}, cannot compute: {one_line(error)}", way_out)
    message = f"{message}, {gib(free)} free"
    if not correct:
        way_out = "exclude it with CUDA_VISIBLE_DEVICES"
        return Finding(name, "failure", f"{message}, computes wrongly", way_out)
    if free < total / 2:
        return Finding(name, "warning", message, "end the other processes on it: see nvidia-smi")
    return Finding(name, "ok", message)


def links(context: CheckContext) -> Iterator[Finding]:
    """The link of each pair of GPUs."""
    found = topology()
    if context.num_gpus < 2 or len(found.gpus) < 2:
        return
    kinds = Counter(
        f"NVLink ({link.num_nvlinks})" if link.kind == "nvlink" else link.kind
        for link in found.links.values()
    )
    message = ", ".join(f"{number} over {kind}" for kind, number in kinds.items())
    yield Finding("links", "ok", f"of {len(found.links)} pairs of GPUs {message}")
    apart = [pair for pair, link in found.links.items() if link.peer_access is False]
    if apart:
        pairs = ", ".join(f"{one}-{other}" for one, other in apart)
        message = f"GPUs {pairs} cannot access each other's memory, and copy through the host's"
        way_out = "nvidia-smi topo -p2p w shows why; where GPUs support it, PCIe ACS must be off"
        yield Finding("links", "warning", message, way_out)
    over_pcie = {
        index for pair, link in found.links.items() if link.kind != "nvlink" for index in pair
    }
    slow = [
        f"GPU {gpu.index} {gpu.pcie_bytes_per_s / 1e9:.1f}"
        for gpu in found.gpus
        if gpu.index in over_pcie
        and gpu.pcie_bytes_per_s is not None
        and gpu.pcie_bytes_per_s < SLOW_PCIE_BYTES_PER_S
    ]
    if slow:
        message = f"PCIe is slower than {SLOW_PCIE_BYTES_PER_S / 1e9:g} GB/s"
        way_out = "use slots with all lanes: see nvidia-smi topo -m and lspci -vv"
        yield Finding("links", "warning", f"{message}: {', '.join(slow)}", way_out)


def nccl(context: CheckContext) -> Iterator[Finding]:
    """The version of NCCL, if several GPUs need it."""
    import torch
    import torch.distributed as dist

    if context.num_gpus > 1 and dist.is_available() and dist.is_nccl_available():
        yield Finding("nccl", "ok", ".".join(map(str, torch.cuda.nccl.version())))


def kernels(context: CheckContext) -> Iterator[Finding]:
    """Each attention kernel: why it cannot run here, or the result of running it."""
    import torch

    from longtake.parallel import KernelNeeds
    from longtake.parallel.kernels.table import KERNELS

    device = torch.device(context.device_type)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    needs = KernelNeeds(device, dtype, head_size=128, log_sum_exp=False)
    refusals = {kernel.name: kernel.unsupported_reason(needs) for kernel in KERNELS}
    faults = {kernel.name: _fault(kernel, needs) for kernel in KERNELS if not refusals[kernel.name]}
    correct = [name for name, fault in faults.items() if not fault]
    for kernel in KERNELS:
        name = f"kernel {kernel.name}"
        if refusals[kernel.name]:
            yield Finding(name, "ok", f"cannot: {refusals[kernel.name]}")
        elif faults[kernel.name]:
            way_out = f"--attention-kernel {correct[0]}" if correct else "reinstall its library"
            yield Finding(name, "warning", f"should, but {faults[kernel.name]}", way_out)
        else:
            yield Finding(name, "ok", f"can{_limits(kernel, needs)}")
    if not correct:
        message = f"none of {len(KERNELS)} can compute attention on {device}"
        yield Finding("kernels", "failure", message, "reinstall torch as pytorch.org says")


def _limits(kernel: Kernel, needs: KernelNeeds) -> str:
    """Where a kernel that runs cannot be used; empty if anywhere."""
    uses = {
        "in a ring": replace(needs, log_sum_exp=True),
        "for training": replace(needs, backward=True),
    }
    without = [use for use, required in uses.items() if kernel.unsupported_reason(required)]
    return f", but not {' or '.join(without)}" if without else ""


def _fault(kernel: Kernel, needs: KernelNeeds) -> str:
    """What is wrong with a kernel's result; empty if it is correct."""
    import torch

    from longtake.parallel.kernels.kernel import KernelOptions

    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 1, 32, 4, needs.head_size, generator=generator)
    q, k, v = qkv.to(needs.device, needs.dtype)
    try:
        out, lse = kernel.run(q, k, v, KernelOptions(scale=0.1))
        expected, expected_lse = _reference(q.float(), k.float(), v.float(), 0.1)
        difference = float((out.float() - expected).abs().max())
        if lse is not None:
            difference = max(difference, float((lse.float() - expected_lse).abs().max()))
    except Exception as error:  # other libraries raise anything
        return f"fails: {one_line(error)}"
    tolerance = TOLERANCES[needs.device.type]
    return "" if difference <= tolerance else f"is wrong by {difference:.0e}, not {tolerance:.0e}"


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by its definition, and the log-sum-exp of its scores."""
    import torch

    scores = torch.einsum("bsnh,btnh->bsnt", q, k) * scale
    return torch.einsum("bsnt,btnh->bsnh", scores.softmax(-1), v), scores.logsumexp(-1)


def exchange(backend: Literal["gloo", "nccl"], context: CheckContext) -> Iterator[Finding]:
    """Attention across two ranks in separate processes; NCCL only with two GPUs."""
    if backend == "nccl" and context.num_gpus < 2:
        return
    from longtake.engine.tools.doctor import trial

    device_type: Literal["cpu", "cuda"] = "cuda" if backend == "nccl" else "cpu"
    started_at = time.monotonic()
    difference = trial.exchange(device_type, context.trial_s)
    elapsed_s, name = time.monotonic() - started_at, f"exchange {backend}"
    message = f"attention on 2 ranks in {elapsed_s:.1f} s, {difference:.0e} from that on one"
    if difference <= TOLERANCES[device_type]:
        yield Finding(name, "ok", message)
    else:
        message += f", more than {TOLERANCES[device_type]:.0e}"
        yield Finding(name, "failure", message, "reinstall torch as pytorch.org says")
