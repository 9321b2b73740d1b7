"""The files of a job: its output, and what is kept of it on the way."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from longtake.engine.job_records import JobRecord
from longtake.engine.jobs import WORK_FOLDER
from longtake.engine.snapshot import UnusableSnapshotError, read_snapshot
from longtake.engine.video_writer import metadata_path, output_paths


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, through all links, is a folder or in it."""
    inside, real = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([inside, real]) == inside


def is_there(folder: Path, job: JobRecord) -> bool:
    """Whether all files of a job have their names; of a folder, that something is in it."""
    paths = output_paths(folder / job.output, job.request.num_videos)
    return all(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in paths)


def rendered_as(folder: Path, job: JobRecord) -> bool:
    """Whether its files are those of this very job, by what stands beside them: they had got their
    names when the process that wrote them died."""
    try:
        content = json.loads(metadata_path(folder / job.output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    batch = content.get("batch") if isinstance(content, dict) else None
    told = batch.get("fingerprint") if isinstance(batch, dict) else None
    return told == job.fingerprint and is_there(folder, job)


def key_of(job: str) -> str:
    """A short name of a job, of which files can be named."""
    return hashlib.sha256(job.encode()).hexdigest()[:12]


def snapshot_of(folder: Path, job: JobRecord) -> Path:
    """Where the snapshot of a job stands."""
    parent = folder / WORK_FOLDER / "snapshots"
    parent.mkdir(exist_ok=True)
    return parent / f"{key_of(job.id)}.safetensors"


def strip_of(folder: Path, job: JobRecord) -> Path:
    """Where the thumbnails of a job stand."""
    parent = folder / WORK_FOLDER / "strips"
    parent.mkdir(exist_ok=True)
    return parent / f"{key_of(job.id)}.jpg"


def steps_kept(folder: Path, job: JobRecord) -> int:
    """Finished steps that a job can go on from."""
    try:
        found = read_snapshot(snapshot_of(folder, job))
    except UnusableSnapshotError:
        return 0
    return 0 if found is None else found.state.steps_done
