"""Deadlines for the progress of each phase, which end a rank that hangs."""

from __future__ import annotations

import faulthandler
import sys
import time

from longtake.configs.engine import EngineConfig
from longtake.pipelines.runtime.progress import Progress

_STEP_FACTOR = 20.0
_SHORTEST_S = 60.0

TIMED_OUT = "Timeout ("
"""Text in the log of a process that missed its deadline."""


def phase_timeout_s(config: EngineConfig, phase: str) -> float | None:
    """Seconds within which a phase must make progress; None: no limit."""
    timeouts = {
        "waiting": None,
        "loading": config.load_timeout_s,
        "text": config.text_timeout_s,
        "denoising": config.step_timeout_s,
        "decoding": config.decode_timeout_s,
    }
    return timeouts[phase]


class Deadlines:
    """Ends this process, with its stacks on stderr, if it makes no progress in time.

    The timer is faulthandler's thread, which needs no GIL: a collective that never returns cannot
    block it.

    Args:
        config: The engine's configuration.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._phase = ""
        self._steps = 0
        self._stepped_at = self._slowest_step_s = 0.0

    def progress(self, progress: Progress) -> float | None:
        """Restart the timer; returns the seconds until the next progress is due, None: no limit."""
        timeout_s = phase_timeout_s(self._config, progress.phase)
        if timeout_s is None:
            self.pause()
            return None
        phase_begins = progress.phase != self._phase
        self._phase = progress.phase
        if progress.phase == "denoising":
            timeout_s = min(timeout_s, self._step_timeout_s(phase_begins))
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.stderr)
        return timeout_s

    def pause(self) -> None:
        """Stop the timer while there is nothing to do."""
        self._phase = ""
        faulthandler.cancel_dump_traceback_later()

    def _step_timeout_s(self, phase_begins: bool) -> float:
        """A multiple of the slowest step so far; the first step of a job may compile or tune."""
        now = time.monotonic()
        if phase_begins:
            self._steps, self._slowest_step_s = 0, 0.0
        else:
            self._steps += 1
            self._slowest_step_s = max(now - self._stepped_at, self._slowest_step_s)
        self._stepped_at = now
        if self._steps < 2:
            return self._config.step_timeout_s
        return max(_SHORTEST_S, _STEP_FACTOR * self._slowest_step_s)
