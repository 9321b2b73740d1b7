"""The order of a replica's jobs: those with the same LoRAs together, for a bounded time."""

from __future__ import annotations

from collections.abc import Sequence

from longtake.engine.loras.choice import LoraChoice
from longtake.serve.queue.job_records import JobRecord

MOST_AHEAD = 8
"""Jobs that may be rendered before one that has waited longer."""

LONGEST_S = 600.0
"""Seconds for which they may."""


class LoraOrder:
    """Chooses a replica's next job, so that its ranks exchange their LoRAs less often.

    A job with the LoRAs of the last one goes before jobs that have waited longer, until
    :data:`MOST_AHEAD` have done so, or :data:`LONGEST_S` have passed since the first of them.
    """

    def __init__(self) -> None:
        self._loras: LoraChoice | None = None  # those of the last job
        self._ahead, self._since = 0, 0.0

    def choose(self, waiting: Sequence[JobRecord], now: float) -> JobRecord:
        """The next job.

        Args:
            waiting: Jobs, the one that has waited longest first; at least one.
            now: Seconds since any fixed time.
        """
        chosen = first = waiting[0]
        if self._ahead < MOST_AHEAD and (not self._ahead or now - self._since < LONGEST_S):
            same = (job for job in waiting if LoraChoice.of(job.request) == self._loras)
            chosen = next(same, first)
        if chosen is first:
            self._ahead = 0
        else:
            self._since = self._since if self._ahead else now
            self._ahead += 1
        self._loras = LoraChoice.of(chosen.request)
        return chosen
