"""Monitors a queue's file for deletion, replacement, truncation and damage."""

from __future__ import annotations

import time
from collections.abc import Callable

from longtake.serve.queue.job_database import QueueBusyError, QueueError
from longtake.serve.queue.job_store import JobStore

_PERIOD_S = 1.0


class QueueWatch:
    """Checks a queue's file periodically and reports each problem once.

    Args:
        store: The queue.
        note: Called with a message when the queue becomes unusable, and when it recovers.

    Attributes:
        problem: Why the queue is unusable; None if it is usable.
    """

    def __init__(self, store: JobStore, note: Callable[[str], None]) -> None:
        self._store = store
        self._note = note
        self._next_at = 0.0
        self.problem: QueueError | None = None

    def look(self) -> None:
        """Check the file, unless that was done less than a second ago."""
        if time.monotonic() < self._next_at:
            return
        previous, current = self.problem, self._check()
        self._next_at = time.monotonic() + _PERIOD_S
        self.problem = current
        if str(previous) != str(current):
            self._note("the queue can be used again" if current is None else str(current))

    def _check(self) -> QueueError | None:
        try:
            self._store.check_usable()
        except QueueBusyError:  # reveals nothing about the file
            return self.problem
        except QueueError as error:
            return error
        return None
