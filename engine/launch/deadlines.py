"""A deadline for progress of each phase, so that a deadlock ends."""

from __future__ import annotations

import faulthandler
import sys
import time

from longtake.configs.engine import EngineConfig
from longtake.pipelines.progress import Progress

_STEP_FACTOR = 20.0
_SHORTEST_S = 60.0

TIMED_OUT = "Timeout ("
"""What the log of a process that ran into its deadline holds."""


def phase_timeout_s(config: EngineConfig, phase: str) -> float | None:
    """Seconds in which a phase must make progress; None: for as long as others do."""
    timeouts = {
        "waiting": None,
        "loading": config.load_timeout_s,
        "text": config.text_timeout_s,
        "denoising": config.step_timeout_s,
        "decoding": config.decode_timeout_s,
    }
    return timeouts[phase]


class Deadlines:
    """Ends this process with its stacks on stderr when it makes no progress in time.

    The timer is a thread of the interpreter's own that needs no lock of it: neither a collective
    that waits for ever nor a long step can starve it.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._phase = ""
        self._steps = 0
        self._stepped_at = self._slowest_step_s = 0.0

    def progress(self, progress: Progress) -> float | None:
        """Start the time again; returns the seconds that this process has for its next progress,
        if it must make any."""
        timeout_s = phase_timeout_s(self._config, progress.phase)
        if timeout_s is None:
            self.pause()
            return None
        begins = progress.phase != self._phase
        self._phase = progress.phase
        if progress.phase == "denoising":
            timeout_s = min(timeout_s, self._step_timeout_s(begins))
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.stderr)
        return timeout_s

    def pause(self) -> None:
        """There is nothing to do, or it is done."""
        self._phase = ""
        faulthandler.cancel_dump_traceback_later()

    def _step_timeout_s(self, begins: bool) -> float:
        """A multiple of the slowest step so far; the first one of a video may compile or tune."""
        now = time.monotonic()
        if begins:
            self._steps, self._slowest_step_s = 0, 0.0
        else:
            self._steps += 1
            self._slowest_step_s = max(now - self._stepped_at, self._slowest_step_s)
        self._stepped_at = now
        if self._steps < 2:
            return self._config.step_timeout_s
        return max(_SHORTEST_S, _STEP_FACTOR * self._slowest_step_s)
