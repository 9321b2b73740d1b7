"""Processes that a test has seen, and whether they have ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil


def still_running(processes: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those that do not end within ``timeout`` seconds.

    One that has ended and that its parent has not waited for is no longer running: where the
    parent is gone, when that happens is up to the system's first process.
    """
    deadline = time.monotonic() + timeout
    while running := [process for process in processes if _runs(process)]:
        if time.monotonic() > deadline:
            return running
        time.sleep(0.02)
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
