"""Checks of what weights pass through: host memory, page locking, PCIe, the model's disk, swap."""

from __future__ import annotations

import mmap
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import psutil

from longtake.configs.models import bundled
from longtake.engine.planning.host import host_memory, pinned_memory, runs_in_wsl
from longtake.engine.planning.topology import topology
from longtake.engine.tools.doctor.finding import CheckContext, Finding, gib
from longtake.files.atomic import cause

if TYPE_CHECKING:
    import torch

COPIED_BYTES = 2**28
"""Bytes of each measured copy, more than caches hold."""

READ_BYTES, READ_S = 2**29, 3.0
"""Most bytes and seconds of reading the disk."""

SLOW_COPY_BYTES_PER_S = 10e9
"""Less than PCIe 3.0 x16 or 4.0 x8 achieve: a block then takes a tenth of a second or more."""
SLOW_DISK_BYTES_PER_S = 0.5e9
JUDGED_BYTES = 2**26
"""Least bytes of a file by which a disk is judged."""

SWAPPED_BYTES = 2**30

_CHUNK_BYTES = 2**22

Bytes = npt.NDArray[np.uint8]


def host(context: CheckContext) -> Iterator[Finding]:
    """The host's memory, and the rate at which one thread copies it."""
    source = np.ones(COPIED_BYTES, np.uint8)
    target = np.zeros_like(source)  # touched, so that no page is added while it is timed
    seconds = min(_seconds_of_copy(source, target) for _ in range(3))
    memory = host_memory()
    message = f"{gib(memory.value)}, {memory.source}; one thread copies "
    yield Finding("host memory", "ok", f"{message}{COPIED_BYTES / seconds / 1e9:.1f} GB/s")


def _seconds_of_copy(source: Bytes, target: Bytes) -> float:
    started_at = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - started_at


def pinned(context: CheckContext) -> Iterator[Finding]:
    """How much host memory can be page-locked for a GPU, and whether it can at all."""
    if not context.num_gpus:
        return
    import torch

    try:
        torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        message = f"{gib(COPIED_BYTES)} cannot be page-locked: {str(error).splitlines()[0]}"
        way_out = "free host memory; --weights disk pins two blocks only"
        yield Finding("pinned memory", "warning", message, way_out)
        return
    limit = pinned_memory(host_memory())
    if runs_in_wsl() and limit is not None:
        message = f"under WSL, about {gib(limit.value)}: half of the memory that it has"
        way_out = "give WSL more memory in .wslconfig, or use Linux without Windows"
        yield Finding("pinned memory", "warning", message, way_out)
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    allowed = "unlimited" if soft == resource.RLIM_INFINITY else gib(soft)
    message = f"works; RLIMIT_MEMLOCK is {allowed}, which CUDA does not count"
    yield Finding("pinned memory", "ok", message)


def pcie(context: CheckContext) -> Iterator[Finding]:
    """The rate of copies from pinned memory to each GPU, beside that of its PCIe lanes."""
    if not context.num_gpus:
        return
    import torch

    pinned = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    lanes = {each.index: each.pcie_bytes_per_s for each in topology().gpus}
    for index in range(context.num_gpus):
        try:
            rate, own = _copy_rate(pinned, index), lanes.get(index)
        except torch.OutOfMemoryError:
            message = f"GPU {index} has no {COPIED_BYTES >> 20} MiB free: copies were not measured"
            yield Finding("pcie", "warning", message, "end what uses it: see nvidia-smi")
            continue
        message = f"GPU {index} receives {rate / 1e9:.1f} GB/s from pinned memory"
        if own:
            message += f", its PCIe lanes carry {own / 1e9:.1f}"
        if rate < SLOW_COPY_BYTES_PER_S:
            way_out = "use a slot with all lanes: see nvidia-smi topo -m and lspci -vv"
            yield Finding("pcie", "warning", message, way_out)
        else:
            yield Finding("pcie", "ok", message)


def _copy_rate(pinned: torch.Tensor, index: int) -> float:
    """Bytes per second of a copy to a GPU."""
    import torch

    device = torch.device("cuda", index)
    target = torch.empty_like(pinned, device=device)
    target.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize(device)
    started_at = time.perf_counter()
    target.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize(device)
    return pinned.nbytes / (time.perf_counter() - started_at)


def disk(context: CheckContext) -> Iterator[Finding]:
    """The rate of reading the model's files past the page cache, if the model is a folder."""
    model = context.engine.model
    folder = bundled().get(model, Path(os.path.expanduser(model)))
    named = [folder] if folder.is_file() else folder.rglob("*.safetensors")
    found = (each for each in named if each.is_file())
    files = sorted(found, key=lambda each: each.stat().st_size)
    if not files:
        yield Finding("disk", "ok", f"not read: {model} is no file or folder of weights")
        return
    try:
        num_bytes, seconds = _read_directly(files[-1])
    except OSError as error:
        message = f"{files[-1]} cannot be read past the page cache: {cause(error)}"
        yield Finding("disk", "ok", message)
        return
    rate = num_bytes / seconds
    message = f"{rate / 1e9:.2f} GB/s from {folder}, of {num_bytes / 2**20:.0f} MiB"
    if rate < SLOW_DISK_BYTES_PER_S and num_bytes >= JUDGED_BYTES:
        way_out = "keep models on an NVMe disk; --weights disk waits for this one"
        yield Finding("disk", "warning", message, way_out)
    else:
        yield Finding("disk", "ok", message)


def _read_directly(path: Path) -> tuple[int, float]:
    """Read the beginning of a file without the page cache, which keeps what it holds.

    Returns:
        Bytes that were read, and the seconds that it took.

    Raises:
        OSError: The file or its file system cannot be read so.
    """
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, _CHUNK_BYTES)  # aligned to pages, as direct reads need
        started_at, done = time.perf_counter(), 0
        while done < READ_BYTES and time.perf_counter() - started_at < READ_S:
            count = os.preadv(file, [buffer], done)
            done += count
            if count < _CHUNK_BYTES:
                break
        return done, max(time.perf_counter() - started_at, 1e-9)
    finally:
        os.close(file)


def swap(context: CheckContext) -> Iterator[Finding]:
    """Whether the host has moved memory to its swap."""
    used = psutil.swap_memory()
    message = f"{gib(used.used)} of {gib(used.total)} in use"
    if used.used > SWAPPED_BYTES:
        message += ": weights in host memory may have been moved there"
        yield Finding("swap", "warning", message, "end other programs, or use --weights disk")
    else:
        yield Finding("swap", "ok", message)
