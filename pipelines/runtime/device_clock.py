"""Reports the steps of a loop as the device finishes them."""

from __future__ import annotations

from collections.abc import Callable

import torch


class DeviceClock:
    """Reports a step when the device has finished it; the host runs one step ahead.

    Args:
        device: The rank's device.
        on_step: Called with the number of steps done.
    """

    def __init__(self, device: torch.device, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step
        self._on_gpu = device.type == "cuda"
        self._pending: tuple[int, torch.cuda.Event] | None = None

    def step(self, done: int) -> None:
        """Called when the host has queued a step."""
        if not self._on_gpu:
            self._on_step(done)
            return
        event = torch.cuda.Event()
        event.record()
        self.finish()
        self._pending = (done, event)

    def finish(self) -> None:
        """Wait for the queued step."""
        if self._pending is not None:
            done, event = self._pending
            event.synchronize()
            self._pending = None
            self._on_step(done)
