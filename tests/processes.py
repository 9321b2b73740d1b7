"""Processes that a test watches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import psutil


def still_running(processes: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """The processes that do not end within ``timeout`` seconds.

    Zombies count as ended: when they are reaped is up to their parent, or to the init process.
    """
    deadline = time.monotonic() + timeout
    while running := [process for process in processes if _is_running(process)]:
        if time.monotonic() > deadline:
            return running
        time.sleep(0.02)
    return []


def children_running(module: str, parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Children of a process, by default this one, that run a Python module."""
    found = []
    for child in (parent or psutil.Process()).children():
        with contextlib.suppress(psutil.Error):  # it has ended
            if module in child.cmdline():
                found.append(child)
    return found


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
