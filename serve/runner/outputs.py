"""The files of a job: output, metadata, snapshot and filmstrip."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from longtake.configs.request import ResolvedRequest
from longtake.engine.media.output_files import is_empty_folder
from longtake.engine.media.paths import metadata_path, output_paths
from longtake.engine.media.snapshot import UnusableSnapshotError, drop_snapshot, read_snapshot
from longtake.files.reading import read_json
from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.job_store import WORK_FOLDER, JobStore
from longtake.serve.queue.retry_policy import PermanentError

logger = logging.getLogger(__name__)

FOREIGN_FILE = "exists already, and this batch did not make it: move it, or name another output"
"""Continues a message that starts with the path of the file."""

_KEY = "[0-9a-f]{12}"
_SNAPSHOT = re.compile(rf"{_KEY}\.safetensors", re.ASCII)


class OutputTakenError(PermanentError):
    """A foreign file is at the output path of a job."""


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path is a folder or inside it, with all links resolved."""
    real_folder, real_path = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([real_folder, real_path]) == real_folder


def written_paths(output: Path, num_videos: int) -> list[Path]:
    """The paths that a job writes: its videos and their metadata."""
    return [*output_paths(output, num_videos), metadata_path(output)]


def is_rendered(folder: Path, job: NewJob) -> bool:
    """Whether the output of a job exists and its metadata has the job's fingerprint.

    The process that published it may have died before it updated the queue.
    """
    fingerprint = batch_metadata(folder / job.output).get("fingerprint")
    return fingerprint == job.fingerprint and _outputs_exist(folder, job)


def is_still_rendered(folder: Path, job: JobRecord) -> bool:
    """Whether the output of a finished job exists and was not replaced by another job's."""
    fingerprint = batch_metadata(folder / job.output).get("fingerprint", job.fingerprint)
    return fingerprint == job.fingerprint and _outputs_exist(folder, job)


def _outputs_exist(folder: Path, job: NewJob) -> bool:
    """Whether all outputs of a job exist; a folder counts if it is not empty."""
    paths = output_paths(folder / job.output, job.request.num_videos)
    return all(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in paths)


def with_rendered_request(folder: Path, job: NewJob) -> NewJob:
    """A job with the request of its existing output, whose queue was lost.

    That request has the seed that was drawn at random. A job without output is returned as is.
    """
    if not is_rendered(folder, job):
        return job
    request = _metadata(folder / job.output).get("request")
    try:
        return replace(job, request=ResolvedRequest.model_validate_json(json.dumps(request)))
    except ValueError:
        return job


def batch_metadata(output: Path) -> dict[str, Any]:
    """The part of an output's metadata about its job; empty if no job wrote it."""
    return _batch_part(_metadata(output))


def legacy_metadata_path(output: Path) -> Path:
    """Where earlier versions wrote the metadata: ``out.json`` for ``out.mp4``."""
    return output.with_suffix(".json")


def _metadata(output: Path) -> dict[str, Any]:
    """The metadata of a job's output; empty if no job wrote it."""
    contents = map(_read_object, (metadata_path(output), legacy_metadata_path(output)))
    return next(filter(_batch_part, contents), {})


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _batch_part(metadata: dict[str, Any]) -> dict[str, Any]:
    part = metadata.get("batch")
    return part if isinstance(part, dict) else {}


def find_foreign_file(
    output: Path,
    num_videos: int,
    job_id: str,
    source: str,
    job_by_id: Callable[[str], JobRecord | None],
) -> Path | None:
    """A foreign file that a job would replace: one that no job of the same source wrote.

    Args:
        output: Output path of the job.
        num_videos: Number of videos of the job.
        job_id: ID of the job.
        source: Source of the job.
        job_by_id: Returns the job with an ID; None if it is unknown.

    Returns:
        The path of the file; None if there is none.
    """
    if batch_metadata(output).get("id") == job_id:
        return None
    author_id = _batch_part(_read_object(metadata_path(output))).get("id")
    author = job_by_id(author_id) if isinstance(author_id, str) else None
    if author is not None and author.source == source:  # another row had this output before
        return None
    paths = written_paths(output, num_videos)
    existing = (each for each in paths if os.path.lexists(each) and not is_empty_folder(each))
    return next(existing, None)


def drop_legacy_metadata(output: Path, job_id: str) -> None:
    """Remove a job's metadata in the file name of earlier versions."""
    legacy = legacy_metadata_path(output)
    if legacy != metadata_path(output) and _batch_part(_read_object(legacy)).get("id") == job_id:
        legacy.unlink(missing_ok=True)


def job_key(job_id: str) -> str:
    """A short key of a job for file names: 12 hexadecimal digits."""
    return hashlib.sha256(job_id.encode()).hexdigest()[:12]


def snapshot_path(folder: Path, job: JobRecord) -> Path:
    """The path of a job's snapshot."""
    parent = folder / WORK_FOLDER / "snapshots"
    parent.mkdir(exist_ok=True)
    return parent / f"{job_key(job.id)}.safetensors"


def filmstrip_path(folder: Path, job: JobRecord) -> Path:
    """The path of a job's filmstrip."""
    parent = folder / WORK_FOLDER / "strips"
    parent.mkdir(exist_ok=True)
    return parent / f"{job_key(job.id)}.jpg"


def resume_step(folder: Path, job: JobRecord) -> int:
    """The denoising step from which a job can resume; 0 without a usable snapshot."""
    try:
        snapshot = read_snapshot(snapshot_path(folder, job))
    except (UnusableSnapshotError, OSError):  # OSError: the folder may have been moved
        return 0
    return 0 if snapshot is None else snapshot.state.steps_done


def sweep_partials(folder: Path, job: JobRecord) -> None:
    """Remove the partial files of earlier attempts at a job."""
    path = folder / job.output
    own = re.compile(rf"\..*\.[0-9a-f]{{8}}\.{job_key(job.id)}-\d+\.partial.*", re.DOTALL)
    for folder in (path.parent, *output_paths(path, job.request.num_videos)):
        for entry in list(folder.iterdir()) if folder.is_dir() else []:
            if not own.fullmatch(entry.name):
                continue
            logger.debug("removing the partial file %s", entry)
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def sweep(store: JobStore) -> None:
    """Remove the snapshots that no job of the queue can resume from."""
    wanted = {job_key(job.id) for job in store.jobs() if job.state not in ("done", "cancelled")}
    found = (store.folder / WORK_FOLDER / "snapshots").glob("*.safetensors")
    unused = [
        path
        for path in found
        if _SNAPSHOT.fullmatch(path.name) and path.stem not in wanted and not path.is_symlink()
    ]
    for path in unused:
        drop_snapshot(path)
    if unused:
        logger.info("removed %d unused snapshots", len(unused))


_SHARED_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "fuse.sshfs",
    "lustre",
    "ceph",
    "gpfs",
    "beegfs",
    "9p",
)


def network_file_system(folder: Path) -> str:
    """The type of a folder's file system if other hosts may share it; empty otherwise."""
    types = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    real = Path(os.path.realpath(folder))
    kind = next((types[str(each)] for each in (real, *real.parents) if str(each) in types), "")
    return kind if kind.startswith(_SHARED_FILE_SYSTEMS) else ""
