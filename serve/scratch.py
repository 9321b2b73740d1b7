"""What one process has for itself in a folder of outputs: a place for what its ranks print and for
files that are not whole; and, of a server, all of it."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from longtake.engine.files import writing
from longtake.engine.jobs import WORK_FOLDER
from longtake.engine.owners import Owner
from longtake.errors import RequestError

_OWNER = "owner.json"
_BEING_MADE_S = 60.0


def alone_in(folder: Path) -> IO[str]:
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
        if _is_left(other, here):
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
