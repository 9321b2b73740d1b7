"""Pictures sent by clients, stored under names chosen by the server."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from longtake.engine.media.pictures.picture import check_content
from longtake.errors import RequestError
from longtake.files.atomic import write_atomically

logger = logging.getLogger(__name__)

_UPLOAD = re.compile(r"sent-[0-9a-f]{32}", re.ASCII)
_OF_JOB = re.compile(r"video_[0-9a-f]{32}-([0-9a-f]{12}|[0-9a-f]{16})", re.ASCII)
_PARTIAL = re.compile(
    r"\.(sent-|video_)[0-9a-f]{32}[-0-9a-f]*(\.[0-9a-f]{8}){2}\.partial", re.ASCII
)
_UPLOAD_KEPT_S = 3600.0
_MAX_UPLOADS = 64


class Pictures:
    """A folder of pictures: those of jobs, and uploads that no job uses yet.

    Other files in the folder and links are left alone.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, job: str, content: bytes) -> Path:
        """Write a job's picture under a new name, and return its path."""
        path = self._folder / f"{job}-{secrets.token_hex(8)}"
        write_atomically(path, content)
        return path

    def upload(self, content: bytes) -> str:
        """Store a picture for a video that is submitted later, and return its name.

        Raises:
            RequestError: It is not a picture, is too large, or takes too long to decode.
            EngineError: It cannot be written or decoded at the moment.
        """
        check_content(content, "the picture")
        path = self._folder / f"sent-{secrets.token_hex(16)}"
        write_atomically(path, content)
        self.drop_old()
        return path.name

    def read(self, picture: Path | str | None) -> bytes:
        """Content of a picture.

        Args:
            picture: Path of a job's picture, or name of an upload.

        Raises:
            RequestError: There is no such picture.
        """
        if isinstance(picture, str):
            picture = self._folder / picture if _UPLOAD.fullmatch(picture) else None
        try:
            if picture is not None and picture.parent == self._folder:
                return picture.read_bytes()
        except OSError:
            pass
        raise RequestError("the picture is no longer there: choose it again")

    def drop(self, path: Path) -> None:
        """Remove a job's picture."""
        if path.parent == self._folder and _OF_JOB.fullmatch(path.name):
            path.unlink(missing_ok=True)

    def drop_old(self) -> None:
        """Remove uploads older than an hour, and all but the newest 64."""
        uploads = []
        for path in self._files(_UPLOAD):
            try:
                uploads.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # removed by another thread
                continue
        uploads.sort()
        newest = uploads[-_MAX_UPLOADS:]
        kept = {path for written_at, path in newest if time.time() - written_at < _UPLOAD_KEPT_S}
        for _, path in uploads:
            if path not in kept:
                path.unlink(missing_ok=True)

    def sweep(self, wanted: Iterable[Path]) -> None:
        """Remove all pictures except the wanted ones. The folder must be locked by this server."""
        kept = set(wanted)
        unused = [path for path in self._files(_UPLOAD, _OF_JOB, _PARTIAL) if path not in kept]
        for path in unused:
            path.unlink(missing_ok=True)
        if unused:
            logger.info("removed %d unused pictures", len(unused))

    def _files(self, *patterns: re.Pattern[str]) -> list[Path]:
        """Regular files with names of this class."""
        return [
            path
            for path in self._folder.iterdir()
            if any(pattern.fullmatch(path.name) for pattern in patterns)
            and path.is_file()
            and not path.is_symlink()
        ]
