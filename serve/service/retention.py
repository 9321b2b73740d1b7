"""Removes the files and records of deleted and expired videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from longtake.engine.media.paths import metadata_path, output_paths
from longtake.engine.media.snapshot import drop_snapshot
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.submissions import Submissions
from longtake.serve.runner.outputs import (
    filmstrip_path,
    legacy_metadata_path,
    snapshot_path,
    sweep_partials,
)
from longtake.serve.service.pictures import Pictures


class Retention:
    """Removes deleted and expired videos from a server's folder.

    Args:
        folder: The server's data folder.
        store: The job queue.
        pictures: Folder of the clients' pictures.
        note: Called with a message for each job whose files cannot be removed.
    """

    def __init__(
        self,
        folder: Path,
        store: Submissions,
        pictures: Pictures,
        note: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._store = store
        self._pictures = pictures
        self._note = note

    def clean_up(self, ended_before: float) -> None:
        """Remove jobs that were deleted or ended before a time, and old uploads.

        The files of a job are removed before its record; if that fails, the record stays.

        Args:
            ended_before: Seconds since 1970.
        """
        removed = []
        for job in self._store.removable(ended_before):
            try:
                self._remove_files(job)
                removed.append(job)
            except OSError as error:
                self._note(f"{job.id} could not be removed: {error}")
        if removed:
            self._store.forget(removed)
        self._pictures.drop_old()

    def _remove_files(self, job: JobRecord) -> None:
        sweep_partials(self._folder, job)
        output = self._folder / job.output
        videos = output_paths(output, job.request.num_videos)
        for path in (*videos, metadata_path(output), legacy_metadata_path(output)):
            path.unlink(missing_ok=True)
        filmstrip_path(self._folder, job).unlink(missing_ok=True)
        drop_snapshot(snapshot_path(self._folder, job))
        for path in job.request.picture_paths.values():
            self._pictures.drop(path)
