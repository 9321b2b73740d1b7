"""Finished videos that a queue does not know, found by the metadata that stands beside them.

So it is after a queue's file was lost or damaged and a new one was begun, or an old one put back.
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
from longtake.engine.media.output_files import metadata_path, output_paths, output_type
from longtake.errors import RequestError, one_line
from longtake.serve.queue.job_records import DoneJob
from longtake.serve.queue.submissions import DOOR
from longtake.serve.runner.outputs import earlier_metadata_path
from longtake.serve.runner.replica import NOT_OF_ONE

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(video_[0-9a-f]{32})(?:-\d{1,4})?(\.mp4|\.safetensors)", re.ASCII)
_MOST_BYTES = 16 * 2**20
"""Of metadata: a thousand ranks and the longest prompts have less."""
_NAMED = 3
_EARLIEST = datetime(2020, 1, 1, tzinfo=timezone.utc).timestamp()

Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]


class _OfTheJob(BaseModel):
    id: str
    fingerprint: str
    engine: str = ""
    model: str = ""
    claims: Annotated[int, Field(ge=0, lt=2**31)] = 0
    queued_at: Seconds | None = None
    started_at: Seconds | None = None


class _OfTheEngine(BaseModel):
    model: str


class _Metadata(BaseModel):
    """What is read of the metadata beside a video."""

    created: datetime
    request: ResolvedRequest
    engine: _OfTheEngine
    seconds: dict[str, Seconds]
    batch: _OfTheJob


def finished_jobs(videos: Path, pictures: Path, known: Container[str]) -> list[DoneJob]:
    """The jobs whose videos are in a server's folder, the oldest first. What is none is left alone,
    and named in the log.

    Args:
        videos: the folder.
        pictures: folder of the pictures that videos begin with.
        known: ids that are not looked for.
    """
    names = {
        found.groups() for path in videos.glob("video_*") if (found := _NAME.fullmatch(path.name))
    }
    jobs, skipped = [], []
    for name, suffix in sorted(each for each in names if each[0] not in known):
        try:
            jobs.append(_finished(name, suffix, videos, pictures))
        except (RequestError, OSError, ValueError) as error:
            skipped.append(f"{name}{suffix} ({one_line(error)[:200]})")
    if skipped:
        more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        logger.warning("left alone in %s: %s%s", videos, ", ".join(skipped[:_NAMED]), more)
    return sorted(jobs, key=lambda job: job.ended_at)


def _finished(name: str, suffix: str, videos: Path, pictures: Path) -> DoneJob:
    path = videos / f"{name}{suffix}"
    metadata = metadata_path(path)
    if not metadata.is_file():
        metadata = earlier_metadata_path(path)
    if not metadata.is_file():
        raise RequestError(f"there is no {metadata.name}")
    if metadata.stat().st_size > _MOST_BYTES:
        raise RequestError(f"{metadata.name} has more than {_MOST_BYTES} bytes")
    told = _Metadata.model_validate_json(metadata.read_bytes())
    if told.batch.id != name or told.request.output_type != output_type(path):
        raise RequestError(f"{metadata.name} is that of another video")
    for each in output_paths(path, told.request.num_videos):
        if each.is_symlink() or not each.is_file():
            raise RequestError(f"there is no {each.name}")
    created = told.created if told.created.tzinfo else told.created.replace(tzinfo=timezone.utc)
    ended_at = min(created.timestamp(), time.time())
    if ended_at < _EARLIEST:  # it would expire at once
        raise RequestError(f"{metadata.name} has created={told.created.isoformat()}")
    of_engine = Path(told.engine.model).name
    return DoneJob(
        id=name,
        source=DOOR,
        position=0,
        output=f"{videos.name}/{path.name}",
        engine=told.batch.engine,
        request=told.request.model_copy(update={"image": _there(told.request.image, pictures)}),
        fingerprint=told.batch.fingerprint,
        model=told.batch.model or of_engine,
        claims=told.batch.claims,
        queued_at=min(told.batch.queued_at or ended_at, ended_at),
        started_at=min(told.batch.started_at or ended_at, ended_at),
        ended_at=ended_at,
        seconds={stage: took for stage, took in told.seconds.items() if stage not in NOT_OF_ONE},
    )


def _there(image: Path | None, pictures: Path) -> Path | None:
    """A video's picture, wherever the folder lies now; None if it is no longer there."""
    path = None if image is None else pictures / image.name
    return path if path is not None and path.is_file() else None
