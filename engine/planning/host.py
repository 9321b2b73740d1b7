"""The memory of this host: how much there is, and how much of it can be page-locked."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

import psutil

from longtake.configs.hardware import Figure

_WSL_PINNED_SHARE = 0.5
"""Share of the memory that GPUs can use under Windows: its "shared GPU memory". CUDA on WSL has
less pinned memory than Linux (CUDA on WSL User Guide, known limitations)."""

_CGROUP = Path("/sys/fs/cgroup")


def host_memory() -> Figure:
    """Memory of this host, or of this container if that has a limit (control groups, version 2)."""
    total, limit = psutil.virtual_memory().total, None
    with suppress(OSError, ValueError):  # no control group, or "max": unlimited
        limit = int((_CGROUP / "memory.max").read_text())
    if limit is not None and limit < total:
        return Figure(value=limit, source="the limit of this container")
    return Figure(value=total, source="the memory of this host")


def available_memory(memory: Figure) -> Figure:
    """What is free of the memory of this host now, page cache included.

    Args:
        memory: Result of :func:`host_memory`.
    """
    free = psutil.virtual_memory().available
    return Figure(value=min(memory.value, free), source="what is free on this host now")


def pinned_memory(memory: Figure) -> Figure | None:
    """Memory that can be page-locked, out of that of this host; None if all of it can.

    On Linux a GPU's driver locks pages itself, and RLIMIT_MEMLOCK does not count.
    """
    if not runs_in_wsl():
        return None
    return Figure(value=_WSL_PINNED_SHARE * memory.value, source="half of the memory, under WSL")


def runs_in_wsl() -> bool:
    """Whether this is Linux under Windows."""
    return "microsoft" in platform.release().lower()
