"""Recovers the jobs of finished videos from their metadata.

Videos without a job exist after the queue's file was lost, damaged, or replaced by an older copy.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Container
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from longtake.configs.request import ResolvedRequest
from longtake.engine.media.output_files import output_type
from longtake.engine.media.paths import metadata_path, output_paths
from longtake.errors import RequestError, one_line
from longtake.serve.queue.job_records import DoneJob
from longtake.serve.queue.submissions import SERVER_SOURCE
from longtake.serve.runner.outputs import legacy_metadata_path
from longtake.serve.runner.stages import UNCOUNTED_STAGES

logger = logging.getLogger(__name__)

_FILE_NAME = re.compile(r"(video_[0-9a-f]{32})(?:-\d{1,4})?(\.mp4|\.safetensors)", re.ASCII)
_MAX_METADATA_BYTES = 16 * 2**20
"""More than a thousand ranks and the longest prompts need."""
_LISTED_IN_LOG = 3
_EARLIEST = datetime(2020, 1, 1, tzinfo=timezone.utc).timestamp()

Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]


class _JobPart(BaseModel):
    id: str
    fingerprint: str
    engine: str = ""
    model: str = ""
    claims: Annotated[int, Field(ge=0, lt=2**31)] = 0
    queued_at: Seconds | None = None
    started_at: Seconds | None = None


class _EnginePart(BaseModel):
    model: str


class _Metadata(BaseModel):
    """The parts of a video's metadata that a job needs."""

    created: datetime
    request: ResolvedRequest
    engine: _EnginePart
    seconds: dict[str, Seconds]
    batch: _JobPart


def find_finished_jobs(videos: Path, pictures: Path, known: Container[str]) -> list[DoneJob]:
    """The jobs of finished videos in a server's folder, oldest first.

    Videos without valid metadata are left alone and logged.

    Args:
        videos: Folder of videos.
        pictures: Folder of clients' pictures.
        known: Ids of the jobs in the queue; they are skipped.
    """
    names = {
        found.groups()
        for path in videos.glob("video_*")
        if (found := _FILE_NAME.fullmatch(path.name))
    }
    jobs, skipped = [], []
    for job_id, suffix in sorted(each for each in names if each[0] not in known):
        try:
            jobs.append(_finished_job(job_id, suffix, videos, pictures))
        except (RequestError, OSError, ValueError) as error:
            skipped.append(f"{job_id}{suffix} ({one_line(error)[:200]})")
    if skipped:
        more = len(skipped) - _LISTED_IN_LOG
        listed = ", ".join(skipped[:_LISTED_IN_LOG]) + (f" and {more} more" if more > 0 else "")
        logger.warning("left alone in %s: %s", videos, listed)
    return sorted(jobs, key=lambda job: job.ended_at)


def _finished_job(job_id: str, suffix: str, videos: Path, pictures: Path) -> DoneJob:
    path = videos / f"{job_id}{suffix}"
    metadata = _read_metadata(path, job_id)
    created, job = metadata.created, metadata.batch
    created = created if created.tzinfo else created.replace(tzinfo=timezone.utc)
    ended_at = min(created.timestamp(), time.time())
    if ended_at < _EARLIEST:  # the video would expire at once
        raise RequestError(f"{metadata_path(path).name} has created={created.isoformat()}")
    request = metadata.request
    found = {name: _existing_picture(p, pictures) for name, p in request.picture_paths.items()}
    stages = metadata.seconds.items()
    return DoneJob(
        id=job_id,
        source=SERVER_SOURCE,
        position=0,
        output=f"{videos.name}/{path.name}",
        engine=job.engine,
        request=request.model_copy(update=found),
        fingerprint=job.fingerprint,
        model=job.model or Path(metadata.engine.model).name,
        claims=job.claims,
        queued_at=min(job.queued_at or ended_at, ended_at),
        started_at=min(job.started_at or ended_at, ended_at),
        ended_at=ended_at,
        seconds={stage: seconds for stage, seconds in stages if stage not in UNCOUNTED_STAGES},
    )


def _read_metadata(path: Path, job_id: str) -> _Metadata:
    """The metadata of a video.

    Raises:
        RequestError: It is missing or of another job, or a file of the job is missing.
        OSError: It cannot be read.
        ValueError: It is malformed.
    """
    file = metadata_path(path)
    if not file.is_file():
        file = legacy_metadata_path(path)
    if not file.is_file():
        raise RequestError(f"there is no {file.name}")
    if file.stat().st_size > _MAX_METADATA_BYTES:
        raise RequestError(f"{file.name} has more than {_MAX_METADATA_BYTES} bytes")
    metadata = _Metadata.model_validate_json(file.read_bytes())
    if metadata.batch.id != job_id or metadata.request.output_type != output_type(path):
        raise RequestError(f"{file.name} is that of another video")
    for output in output_paths(path, metadata.request.num_videos):
        if output.is_symlink() or not output.is_file():
            raise RequestError(f"there is no {output.name}")
    return metadata


def _existing_picture(image: Path, pictures: Path) -> Path | None:
    """A video's picture in the folder of pictures; None if it is missing."""
    path = pictures / image.name
    return path if path.is_file() else None
