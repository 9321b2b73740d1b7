"""Observers of jobs and batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longtake.engine.metadata import Metadata
from longtake.pipelines.runtime.progress import Progress
from longtake.serve.queue.job_records import JobRecord, State


class Watcher:
    """Observes jobs while they are rendered. Called from several threads.

    Unimplemented callbacks are no-ops.
    """

    def progress(self, job: str, progress: Progress) -> None:
        """A job made progress."""

    def state(self, job: str, state: State, text: str) -> None:
        """A job changed its state."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def frames(self, job: str, picture: bytes) -> None:
        """More frames of a job were decoded; ``picture`` is a JPEG of the thumbnails so far."""

    def rendered(self, job: JobRecord, metadata: Metadata) -> None:
        """A job is done."""


class BatchWatcher(Watcher):
    """Observes a batch and its jobs."""

    def ended(self, jobs: Sequence[JobRecord], reports: Sequence[Path]) -> None:
        """The batch has ended, successfully or not, and its reports are written."""
