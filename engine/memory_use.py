"""How much memory this process uses, and whether an error means that there was not enough."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most resident memory that this process has used since it started."""
    # psutil has no peak on Linux, and getrusage's includes that of the parent before the exec.
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_memory_bytes() -> int:
    """The most memory in use since this process started: on its GPU if it uses one, else on the
    host."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory; torch has no class for that of the host."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)
