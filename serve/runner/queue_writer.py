"""Retries writes to a queue that may be unusable for a while, with a full disk for instance."""

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
"""Maximum duration of retries, and period of messages about them."""

ResultT = TypeVar("ResultT")


class WorkerEndsError(EngineError):
    """A worker cannot continue: no ranks can be started, or the queue cannot be written."""


class QueueWriter:
    """Retries failed writes for a minute, or forever.

    Args:
        watcher: Receives messages about failures.
        stop: Set to end all retries.
        forever: Whether to retry until ``stop`` is set.
    """

    def __init__(self, watcher: Watcher, stop: threading.Event, *, forever: bool) -> None:
        self._watcher = watcher
        self._stop = stop
        self._forever = forever

    def write(self, action: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Call an action that writes to the queue until it succeeds, and return its result.

        Raises:
            WorkerEndsError: The retries ended, or the queue is lost and retries are limited.
        """
        noted_at = begun = time.monotonic()
        while True:
            try:
                return action(*arguments)
            except EngineError as error:
                elapsed_s = time.monotonic() - begun
                permanent = isinstance(error, QueueLostError) or elapsed_s > _GIVE_UP_S
                if (permanent and not self._forever) or self._stop.is_set():
                    raise WorkerEndsError(str(error)) from error
                if noted_at == begun or time.monotonic() - noted_at > _GIVE_UP_S:
                    noted_at = time.monotonic()
                    self._watcher.note(str(error))
            self._stop.wait(_RETRY_S)
