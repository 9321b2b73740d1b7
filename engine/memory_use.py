"""Memory that this process uses, and errors that mean there was not enough."""

from __future__ import annotations

import warnings
from pathlib import Path

import psutil
import torch


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Peak resident memory since this process started."""
    # psutil has no peak on Linux, and getrusage's includes that of the parent before the exec.
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_memory_bytes() -> int:
    """Peak memory since this process started: of its GPU if it uses one, else of the host."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def swapped_bytes() -> int:
    """Bytes that this host has moved between memory and its swap since it started; 0 if unknown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a container may hide the counters
        swap = psutil.swap_memory()
    return int(swap.sin + swap.sout)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory; torch has no class for that of the host."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)
