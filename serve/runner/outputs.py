"""The files of a job: its output, and what is kept of it on the way."""

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
from longtake.engine.media.output_files import is_empty_folder, metadata_path, output_paths
from longtake.engine.media.snapshot import UnusableSnapshotError, drop_snapshot, read_snapshot
from longtake.errors import RequestError
from longtake.files.reading import read_json
from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.job_store import WORK_FOLDER, JobStore

logger = logging.getLogger(__name__)

TAKEN = "is there already, and this batch did not make it: move it, or name another output"

_KEY = "[0-9a-f]{12}"
_SNAPSHOT = re.compile(rf"{_KEY}\.safetensors", re.ASCII)


class OutputTakenError(RequestError):
    """A file stands where a job writes, and the job did not make it."""


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, through all links, is a folder or in it."""
    inside, real = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([inside, real]) == inside


def is_there(folder: Path, job: NewJob) -> bool:
    """Whether all files of a job have their names; of a folder, that something is in it."""
    paths = output_paths(folder / job.output, job.request.num_videos)
    return all(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in paths)


def rendered_as(folder: Path, job: NewJob) -> bool:
    """Whether its files are those of this very job, by what stands beside them: they had got their
    names when the process that wrote them died."""
    told = told_of(folder / job.output)
    return told.get("fingerprint") == job.fingerprint and is_there(folder, job)


def as_rendered(folder: Path, job: NewJob) -> NewJob:
    """A job whose files are there, with the request that they came of: of one that was drawn, the
    seed. So it is after a queue was lost. Any other job as it is."""
    if not rendered_as(folder, job):
        return job
    request = _metadata_of(folder / job.output).get("request")
    try:
        return replace(job, request=ResolvedRequest.model_validate_json(json.dumps(request)))
    except ValueError:
        return job


def is_still_there(folder: Path, job: JobRecord) -> bool:
    """Whether the files of a job that is done are there, and no other job made them since."""
    told = told_of(folder / job.output)
    return told.get("fingerprint", job.fingerprint) == job.fingerprint and is_there(folder, job)


def told_of(output: Path) -> dict[str, Any]:
    """What a batch wrote of a job into the metadata of its output; nothing if it is not its."""
    return _batch_in(_metadata_of(output))


def earlier_metadata_path(output: Path) -> Path:
    """Where versions before this one wrote the metadata: ``out.json`` beside ``out.mp4``."""
    return output.with_suffix(".json")


def _metadata_of(output: Path) -> dict[str, Any]:
    """The metadata of a batch's output; empty if there is none."""
    contents = map(_content, (metadata_path(output), earlier_metadata_path(output)))
    return next(filter(_batch_in, contents), {})


def _content(metadata: Path) -> dict[str, Any]:
    try:
        content = read_json(metadata)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _batch_in(content: dict[str, Any]) -> dict[str, Any]:
    batch = content.get("batch")
    return batch if isinstance(batch, dict) else {}


def files_of(output: Path, num_videos: int) -> list[Path]:
    """The videos of a job, and their metadata."""
    return [*output_paths(output, num_videos), metadata_path(output)]


def taken_by_others(
    output: Path,
    num_videos: int,
    name: str,
    source: str,
    job_of: Callable[[str], JobRecord | None],
) -> Path | None:
    """A file where a job writes that neither it made nor another job of the same source.

    Args:
        output: of the job.
        name: its id.
        source: where it comes from.
        job_of: the job of an id, if the queue knows it.
    """
    if told_of(output).get("id") == name:
        return None
    maker = _batch_in(_content(metadata_path(output))).get("id")
    job = job_of(maker) if isinstance(maker, str) else None
    if job is not None and job.source == source:  # a row that had this output before
        return None
    files = files_of(output, num_videos)
    there = (each for each in files if os.path.lexists(each) and not is_empty_folder(each))
    return next(there, None)


def drop_earlier_metadata(output: Path, name: str) -> None:
    """Remove the metadata that an earlier version wrote of a job, once there is other."""
    earlier = earlier_metadata_path(output)
    if earlier != metadata_path(output) and _batch_in(_content(earlier)).get("id") == name:
        earlier.unlink(missing_ok=True)


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
    except (UnusableSnapshotError, OSError):  # the folder may have been moved
        return 0
    return 0 if found is None else found.state.steps_done


def sweep_partials(folder: Path, job: JobRecord) -> None:
    """Remove what earlier attempts of a job left under names that are not whole."""
    path = folder / job.output
    own = re.compile(rf"\..*\.[0-9a-f]{{8}}\.{key_of(job.id)}-\d+\.partial.*", re.DOTALL)
    for place in (path.parent, *output_paths(path, job.request.num_videos)):
        for left in list(place.iterdir()) if place.is_dir() else []:
            if not own.fullmatch(left.name):
                continue
            logger.debug("%s was not whole, and is removed", left)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def sweep(store: JobStore) -> None:
    """Remove the snapshots that no job of a queue will go on from."""
    wanted = {key_of(job.id) for job in store.jobs() if job.state not in ("done", "cancelled")}
    found = (store.folder / WORK_FOLDER / "snapshots").glob("*.safetensors")
    left = [
        path
        for path in found
        if _SNAPSHOT.fullmatch(path.name) and path.stem not in wanted and not path.is_symlink()
    ]
    for path in left:
        drop_snapshot(path)
    if left:
        logger.info("%d snapshots that no job goes on from were removed", len(left))


_OF_SEVERAL_HOSTS = ("nfs", "cifs", "smb", "fuse.sshfs", "lustre", "ceph", "gpfs", "beegfs", "9p")


def network_file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, if several hosts may see it; else empty."""
    mounts = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    at = Path(os.path.realpath(folder))
    kind = next((mounts[str(up)] for up in (at, *at.parents) if str(up) in mounts), "")
    return kind if kind.startswith(_OF_SEVERAL_HOSTS) else ""
