"""Predicts a function's peak memory, and measures a device's free memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from longtake.pipelines.operations import LiveBytes, observing, without_values

_CGROUP = Path("/sys/fs/cgroup")


def peak_bytes(
    function: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    device: torch.device,
) -> int:
    """Peak bytes of a function's tensors, including its input and result.

    Nothing is computed: the function runs on fake tensors. Workspace of kernels is not included.

    Args:
        function: Function of one float32 tensor; its weights are not counted.
        shape: Shape of the tensor.
        device: Device of the tensor and the weights.
    """
    memory = LiveBytes()
    with without_values(), observing(memory):
        function(torch.empty(shape, device=device))
    return memory.peak


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of the host within the limit of this container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    free, limit = psutil.virtual_memory().available, _container_free_bytes(_CGROUP)
    return free if limit is None else min(free, limit)


def _container_free_bytes(cgroup: Path) -> int | None:
    """Free memory below the memory limit of this container's control group (version 2).

    Inactive page cache counts as free, as in Kubernetes' working set. None without a limit.
    """
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no control group, or "max": unlimited
        return None
