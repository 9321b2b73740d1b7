"""The files of a job: its output, and what is kept of it on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import psutil

from longtake.engine.job_records import JobRecord
from longtake.engine.jobs import WORK_FOLDER, JobStore
from longtake.engine.snapshot import UnusableSnapshotError, drop_snapshot, read_snapshot
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
    told = told_of(metadata_path(folder / job.output))
    return told.get("fingerprint") == job.fingerprint and is_there(folder, job)


def told_of(metadata: Path) -> dict[str, Any]:
    """What a batch wrote of a job into the file beside its output; nothing if it is not its."""
    try:
        content = json.loads(metadata.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    batch = content.get("batch") if isinstance(content, dict) else None
    return batch if isinstance(batch, dict) else {}


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


def sweep_partials(folder: Path, job: JobRecord) -> None:
    """Remove what earlier attempts of a job left under names that are not whole."""
    path = folder / job.output
    pattern = f".*.{key_of(job.id)}-*.partial*"
    for left in [*path.parent.glob(pattern), *path.glob(pattern)]:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sweep(store: JobStore) -> None:
    """Remove the snapshots that no job of a queue will go on from."""
    wanted = {key_of(job.id) for job in store.jobs() if job.state not in ("done", "cancelled")}
    for path in (store.folder / WORK_FOLDER / "snapshots").glob("*.safetensors"):
        if path.stem not in wanted and not path.name.startswith("."):
            drop_snapshot(path)


_OF_SEVERAL_HOSTS = ("nfs", "cifs", "smb", "fuse.sshfs", "lustre", "ceph", "gpfs", "beegfs", "9p")


def network_file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, if several hosts may see it; else empty."""
    mounts = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    at = Path(os.path.realpath(folder))
    kind = next((mounts[str(up)] for up in (at, *at.parents) if str(up) in mounts), "")
    return kind if kind.startswith(_OF_SEVERAL_HOSTS) else ""
