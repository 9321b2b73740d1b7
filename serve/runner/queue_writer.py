"""Writes to a queue that may be unusable for a while, for example because the disk is full."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from longtake.errors import EngineError
from longtake.serve.queue.job_database import QueueLostError
from longtake.serve.runner.watcher import Watcher

_RETRY_S = 0.3
_GIVE_UP_S = 60.0
"""How long a write is retried, and the period of messages about it."""

ResultT = TypeVar("ResultT")


class WorkerEndsError(EngineError):
    """A worker cannot go on with any job: it gets no ranks, or cannot write to the queue."""


class QueueWriter:
    """Retries failed writes for a minute; without end if more jobs may come at any time.

    Args:
        watcher: Notified of the failures.
        stop: Ends all retries.
        forever: Whether to retry until ``stop`` is set.
    """

    def __init__(self, watcher: Watcher, stop: threading.Event, *, forever: bool) -> None:
        self._watcher = watcher
        self._stop = stop
        self._forever = forever

    def write(self, action: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Call an action that writes to the queue until it succeeds; returns its result.

        Raises:
            WorkerEndsError: The retries ended, or the queue is lost.
        """
        noted_at = begun = time.monotonic()
        while True:
            try:
                return action(*arguments)
            except EngineError as error:
                hopeless = isinstance(error, QueueLostError) or (
                    time.monotonic() - begun > _GIVE_UP_S
                )
                if (hopeless and not self._forever) or self._stop.is_set():
                    raise WorkerEndsError(str(error)) from error
                if noted_at == begun or time.monotonic() - noted_at > _GIVE_UP_S:
                    noted_at = time.monotonic()
                    self._watcher.note(str(error))
            self._stop.wait(_RETRY_S)
