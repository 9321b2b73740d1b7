"""Renders one claimed job into its output files."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from longtake.configs.commands.batch import BatchConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.paths import OutputTarget, output_paths
from longtake.engine.media.snapshot import SnapshotPlan, plan_snapshots
from longtake.engine.media.video_writer import VideoFiles
from longtake.engine.metadata import Metadata
from longtake.errors import EngineError, RequestError
from longtake.files.atomic import writing
from longtake.pipelines.runtime.progress import OnProgress, Progress
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.job_store import JobStore
from longtake.serve.queue.lease import Lease
from longtake.serve.runner.filmstrip import Filmstrip
from longtake.serve.runner.outputs import (
    FOREIGN_FILE,
    OutputTakenError,
    batch_metadata,
    drop_legacy_metadata,
    filmstrip_path,
    find_foreign_file,
    is_inside,
    job_key,
    snapshot_path,
)
from longtake.serve.runner.queue_writer import QueueWriter
from longtake.serve.runner.ranks import Ranks
from longtake.serve.runner.watcher import Watcher

_JOB_FIELDS = ("id", "fingerprint", "engine", "model", "claims", "queued_at", "started_at")
"""Fields of a job in its metadata, from which it is restored if the queue is lost."""


@dataclass(frozen=True)
class ReplicaSettings:
    """How a replica renders.

    Attributes:
        engine_digest: Digest of the engine. Only jobs of this engine are claimed.
        batch: Settings of the batch.
        snapshots: How often snapshots are written.
        scratch: Folder for partial files.
        frames_shown: Maximum number of thumbnails of a video.
    """

    engine_digest: str
    batch: BatchConfig
    snapshots: SnapshotConfig
    scratch: Path
    frames_shown: int = 3


class JobRenderer:
    """Renders jobs of a queue on the ranks of one replica.

    Args:
        store: The queue.
        ranks: The ranks; they must be running when a job is rendered.
        settings: Settings of the replica.
        watcher: Observer of the jobs.
        writer: Retries writes to the queue.
    """

    def __init__(
        self,
        store: JobStore,
        ranks: Ranks,
        settings: ReplicaSettings,
        watcher: Watcher,
        writer: QueueWriter,
    ) -> None:
        self._store = store
        self._ranks = ranks
        self._settings = settings
        self._watcher = watcher
        self._writer = writer

    def render(self, lease: Lease, on_progress: OnProgress, *, low_memory: bool) -> Metadata:
        """Render a job from its last snapshot and publish its files.

        Args:
            lease: The lease on the job.
            on_progress: Called with the progress of the ranks.
            low_memory: Whether to decode with minimal memory.

        Returns:
            The metadata of the video. Its files are published.

        Raises:
            RequestError: The output path leaves the folder.
            OutputTakenError: A foreign file is at the output path, or appeared there meanwhile.
            ClaimLostError: Another process has taken over the job; nothing was published.
        """
        job = lease.job
        output = self._prepare_output(job)
        snapshots = self._plan_snapshots(job)
        files = self._open_files(job, output)
        filmstrip = Filmstrip(
            files,
            self._ranks.engine.num_frames_of(job.request),
            lambda picture: self._watcher.frames(job.id, picture),
            self._settings.frames_shown,
        )
        with files:
            metadata = self._ranks.render(
                job.request,
                filmstrip,
                on_progress,
                snapshots=snapshots,
                low_memory=low_memory,
                stop_requested=lease.stop_requested,
            )
            self._publish(lease, files, metadata)
        drop_legacy_metadata(output, job.id)
        if files.paths != output_paths(output, job.request.num_videos):
            written = " ".join(map(str, files.paths))
            raise OutputTakenError(f"{output} was put there meanwhile: this video is {written}")
        with suppress(EngineError, OSError):  # a video without thumbnails is still done
            path = filmstrip_path(self._store.folder, job)
            filmstrip.save(path, self._settings.scratch / path.name)
        return metadata

    def _prepare_output(self, job: JobRecord) -> Path:
        """Create the folder of the output, and refuse to replace foreign files."""
        folder = self._store.folder
        output = folder / job.output
        if not is_inside(
            folder, output.parent
        ):  # a link may have been created since the row was checked
            raise RequestError(f"output={job.output!r} leaves {folder}: remove the link")
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)

        def job_by_id(job_id: str) -> JobRecord | None:
            with suppress(RequestError):
                return self._store.job(job_id)
            return None

        foreign = find_foreign_file(output, job.request.num_videos, job.id, job.source, job_by_id)
        if foreign is not None:
            raise OutputTakenError(f"{foreign} {FOREIGN_FILE}")
        return output

    def _plan_snapshots(self, job: JobRecord) -> SnapshotPlan:
        identity = self._ranks.engine.identity_of(job.request)
        path = snapshot_path(self._store.folder, job)
        plan, note = plan_snapshots(path, identity, self._settings.snapshots, resume=True)
        if note:
            with suppress(EngineError):  # the watcher gets the note in any case
                self._store.note(job, "snapshot", note, time.time())
            self._watcher.note(f"{job.id}: {note}")
        return plan

    def _open_files(self, job: JobRecord, output: Path) -> VideoFiles:
        engine = self._ranks.engine
        target = OutputTarget(
            output,
            overwrite=bool(batch_metadata(output)),
            token=f"{job_key(job.id)}-{job.claims}",
        )
        return VideoFiles(
            target,
            job.request,
            engine.config,
            num_frames=engine.num_frames_of(job.request),
            keep_latents=False,
        )

    def _publish(self, lease: Lease, files: VideoFiles, metadata: Metadata) -> None:
        """Publish the files, if the claim is still valid."""
        job = lease.job
        self._watcher.progress(job.id, Progress("writing"))
        metadata.seconds["writing"] = files.seconds
        for warning in metadata.warnings():
            self._watcher.note(f"{job.id}: {warning}")
        self._writer.write(lease.check)
        job_fields = {name: getattr(job, name) for name in _JOB_FIELDS}
        files.publish({**metadata.as_json(), "batch": job_fields})
