"""Predicts a function's peak memory, and measures a device's free memory.

The only module of ``pipelines`` that uses private names of torch;
tests/unit/pipelines/test_library_internals.py fails when they move.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_CGROUP = Path("/sys/fs/cgroup")


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are created while it is active and still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count the storages that it creates."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not func.is_view:  # a view allocates nothing
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size


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
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _LiveBytes() as counted:
        function(torch.empty(shape, device=device))
    peak: int = counted.peak
    return peak


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
