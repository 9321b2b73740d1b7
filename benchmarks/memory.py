"""Measures the peak memory of a block of code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from longtake.engine.memory_use import peak_resident_bytes, resident_bytes


@contextmanager
def peak_memory(device_type: str) -> Iterator[Callable[[], int]]:
    """Measure peak memory inside the context, in bytes above the memory in use on entry."""
    if device_type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before, peak = resident_bytes(), 0
    yield lambda: peak - before
    peak = peak_resident_bytes()
