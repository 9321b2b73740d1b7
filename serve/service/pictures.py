"""The pictures that clients sent, under names of the server's own."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from longtake.engine.media.picture import check_content
from longtake.errors import RequestError
from longtake.files.atomic import write_whole
from longtake.serve.http.turns import Turns

logger = logging.getLogger(__name__)

_BEFOREHAND = re.compile(r"sent-[0-9a-f]{32}", re.ASCII)
_OF_JOB = re.compile(r"video_[0-9a-f]{32}-([0-9a-f]{12}|[0-9a-f]{16})", re.ASCII)
_PARTIAL = re.compile(
    r"\.(sent-|video_)[0-9a-f]{32}[-0-9a-f]*(\.[0-9a-f]{8}){2}\.partial", re.ASCII
)
_KEPT_S = 3600.0
_MOST_BEFOREHAND = 64


class Pictures:
    """A folder of pictures. Other files in it, and links, are left alone.

    Args:
        folder: that is there.

    Attributes:
        turns: of those who send one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.turns = Turns()

    def write(self, job: str, content: bytes) -> Path:
        """Keep a job's picture, beside any other that came with the same job."""
        path = self._folder / f"{job}-{secrets.token_hex(8)}"
        write_whole(path, content)
        return path

    def send(self, content: bytes) -> str:
        """Keep one for which a video will be asked before long; returns its name.

        Raises:
            RequestError: it is no picture, too large, or takes too long to decode.
            EngineError: it cannot be written or decoded now.
        """
        check_content(content, "the picture")
        path = self._folder / f"sent-{secrets.token_hex(16)}"
        write_whole(path, content)
        self.drop_old()
        return path.name

    def read(self, name: Path | str | None) -> bytes:
        """The content of a job's picture, or of one that was sent beforehand.

        Raises:
            RequestError: it is no longer there.
        """
        if isinstance(name, str):
            name = self._folder / name if _BEFOREHAND.fullmatch(name) else None
        try:
            if name is not None and name.parent == self._folder:
                return name.read_bytes()
        except OSError:
            pass
        raise RequestError("the picture is no longer there: choose it again")

    def drop(self, path: Path) -> None:
        """Remove a job's picture."""
        if path.parent == self._folder and _OF_JOB.fullmatch(path.name):
            path.unlink(missing_ok=True)

    def drop_old(self) -> None:
        """Remove those for which no video was asked."""
        sent = []
        for path in self._files(_BEFOREHAND):
            try:
                sent.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # another thread was faster
                continue
        sent.sort()
        kept = {path for at, path in sent[-_MOST_BEFOREHAND:] if time.time() - at < _KEPT_S}
        for _, path in sent:
            if path not in kept:
                path.unlink(missing_ok=True)

    def sweep(self, wanted: Iterable[Path | None]) -> None:
        """Remove all pictures that no job names; no other server may use the folder meanwhile."""
        named = set(wanted)
        left = [path for path in self._files(_BEFOREHAND, _OF_JOB, _PARTIAL) if path not in named]
        for path in left:
            path.unlink(missing_ok=True)
        if left:
            logger.info("%d pictures that no video needs were removed", len(left))

    def _files(self, *patterns: re.Pattern[str]) -> list[Path]:
        """The files whose names this class gave."""
        return [
            path
            for path in self._folder.iterdir()
            if any(pattern.fullmatch(path.name) for pattern in patterns)
            and path.is_file()
            and not path.is_symlink()
        ]
