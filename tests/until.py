"""Waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(holds: Callable[[], object], timeout: float = 20) -> None:
    """Wait until a condition holds; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"the condition did not hold within {timeout} s"
        time.sleep(0.02)
