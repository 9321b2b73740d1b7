"""What one process has for itself in a folder of outputs: a place for what its ranks print and for
files that are not whole; and, of a server, all of it."""

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
_OF_A_PROCESS = re.compile(r"\d+-\d+", re.ASCII)
_BEING_MADE_S = 60.0
_OF_WORK = ("ranks", "snapshots", "strips")
_FILES_OF_WORK = ("jobs.sqlite", "serve.lock")


def prepare_folder(named: str, folder: Path, *parts: str) -> None:
    """Make a folder of outputs, and those in it, and write something into each.

    Args:
        named: what the user calls it, for the error.
        parts: folders in it, beside those that the queue needs.

    Raises:
        RequestError: one cannot be made or written to, or its disk is full. What was made by then
            is removed.
    """
    work = folder / WORK_FOLDER
    made: list[Path] = []
    inside = [*(folder / part for part in parts), work, *(work / part for part in _OF_WORK)]
    try:
        for path in (folder, *inside):
            new = [each for each in (path, *path.parents) if not os.path.lexists(each)]
            for each in reversed(new):
                each.mkdir(exist_ok=True)
                made.append(each)
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            probe(path)
        for path in (work / file for file in _FILES_OF_WORK):
            if os.path.lexists(path) and not (path.is_file() and os.access(path, os.W_OK)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        for each in reversed(made):
            with suppress(OSError):
                each.rmdir()
        raise RequestError(
            f"{named}={str(folder)!r}: {path} cannot be written to ({cause(error)}): make it "
            "writable, or name another folder"
        ) from error


def lock_folder(folder: Path) -> IO[str]:
    """A lock on a folder, until it is closed or this process ends.

    Raises:
        RequestError: another server has it.
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
    """A folder for what ranks print and for files that are not whole; those of processes that have
    ended are removed."""
    parent = folder / WORK_FOLDER / "ranks"
    here = Owner.this_process()
    own = parent / f"{here.pid}-{here.started}"
    with writing(own):
        own.mkdir(parents=True, exist_ok=True)
        (own / _OWNER).write_text(here.model_dump_json())
    for other in parent.iterdir():
        if _OF_A_PROCESS.fullmatch(other.name) and _is_left(other, here):
            logger.debug("%s is of a process that has ended, and is removed", other)
            shutil.rmtree(other, ignore_errors=True)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _is_left(scratch: Path, here: Owner) -> bool:
    """Whether the process that made such a folder has ended."""
    try:
        return bool(Owner.model_validate_json((scratch / _OWNER).read_text()).ended(here))
    except ValueError:  # the disk was full
        return True
    except OSError:  # it is being made, or was being removed
        with suppress(OSError):
            return time.time() - scratch.stat().st_mtime > _BEING_MADE_S
        return False
