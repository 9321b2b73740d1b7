"""Preparation and locking of output folders, and the scratch folder of each process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from longtake.errors import RequestError
from longtake.files.atomic import cause, probe, writing
from longtake.serve.queue.job_store import WORK_FOLDER
from longtake.serve.queue.process_identity import Owner

logger = logging.getLogger(__name__)

_OWNER = "owner.json"
_SCRATCH_NAME = re.compile(r"\d+-\d+", re.ASCII)
_CREATION_GRACE_S = 60.0
_WORK_SUBFOLDERS = ("ranks", "snapshots", "strips")
_WORK_FILES = ("jobs.sqlite", "serve.lock")


def prepare_folder(option: str, folder: Path, *parts: str) -> None:
    """Create an output folder and its subfolders, and check that each can be written to.

    Args:
        option: Name of the option that names the folder, for error messages.
        folder: The output folder.
        parts: Subfolders to create in addition to those of the queue.

    Raises:
        RequestError: A folder cannot be created or written to, or its disk is full. The folders
            created before the error are removed.
    """
    work = folder / WORK_FOLDER
    created: list[Path] = []
    inside = [*(folder / part for part in parts), work, *(work / part for part in _WORK_SUBFOLDERS)]
    try:
        for path in (folder, *inside):
            missing = [each for each in (path, *path.parents) if not os.path.lexists(each)]
            for each in reversed(missing):
                each.mkdir(exist_ok=True)
                created.append(each)
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            probe(path)
        for path in (work / file for file in _WORK_FILES):
            if os.path.lexists(path) and not (path.is_file() and os.access(path, os.W_OK)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        for each in reversed(created):
            with suppress(OSError):
                each.rmdir()
        raise RequestError(
            f"{option}={str(folder)!r}: {path} cannot be written to ({cause(error)}): make it "
            "writable, or name another folder"
        ) from error


def lock_folder(folder: Path) -> IO[str]:
    """Lock a folder for one server.

    Returns:
        An open file. The lock holds until it is closed or the process ends.

    Raises:
        RequestError: Another server holds the lock.
    """
    path = folder / WORK_FOLDER / "serve.lock"
    with writing(path):
        file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise RequestError(
            f"data_dir={str(folder)!r} is served by another process: name another folder"
        ) from error
    return file


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Context manager: a folder for partial files and the logs of ranks, removed at the end.

    The scratch folders of processes that have ended are removed at the start.
    """
    parent = folder / WORK_FOLDER / "ranks"
    here = Owner.this_process()
    own = parent / f"{here.pid}-{here.started}"
    with writing(own):
        own.mkdir(parents=True, exist_ok=True)
        (own / _OWNER).write_text(here.model_dump_json())
    for other in parent.iterdir():
        if _SCRATCH_NAME.fullmatch(other.name) and _is_abandoned(other, here):
            logger.debug("removing %s of a process that has ended", other)
            shutil.rmtree(other, ignore_errors=True)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _is_abandoned(scratch: Path, here: Owner) -> bool:
    """Whether the process that created a scratch folder has ended."""
    try:
        return bool(Owner.model_validate_json((scratch / _OWNER).read_text()).ended(here))
    except ValueError:  # cut short by a full disk
        return True
    except OSError:  # the folder is being created or removed
        with suppress(OSError):
            return time.time() - scratch.stat().st_mtime > _CREATION_GRACE_S
        return False
