"""Notices that a queue's file was deleted, replaced, cut short or damaged while it is in use."""

from __future__ import annotations

import time
from collections.abc import Callable

from longtake.serve.queue.job_database import QueueBusyError, QueueError
from longtake.serve.queue.job_store import JobStore

_EVERY_S = 1.0


class QueueWatch:
    """Looks at a queue's file from time to time, and says once what is wrong with it.

    Args:
        store: of the file.
        note: is told when the queue cannot be used, and when it can be used again.

    Attributes:
        problem: why the queue cannot be used; None if it can.
    """

    def __init__(self, store: JobStore, note: Callable[[str], None]) -> None:
        self._store = store
        self._note = note
        self._next_at = 0.0
        self.problem: QueueError | None = None

    def look(self) -> None:
        """Look at the file, unless that was done a moment ago."""
        if time.monotonic() < self._next_at:
            return
        before, now = self.problem, self._problem()
        self._next_at = time.monotonic() + _EVERY_S
        self.problem = now
        if str(before) != str(now):
            self._note("the queue can be used again" if now is None else str(now))

    def _problem(self) -> QueueError | None:
        try:
            self._store.check_usable()
        except QueueBusyError:  # it passes, and says nothing of the file
            return self.problem
        except QueueError as error:
            return error
        return None
