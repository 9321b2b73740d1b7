"""Bounded reads of files that users or models name: regular files only, up to a maximum size.

Reading a pipe could block and reading a device may never end, so neither is opened.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 8 * 2**20
"""Limit for a file that Python parses: the objects take 30 times as much memory."""

MAX_YAML_BYTES = 2**18
"""Limit for a short file that is parsed value by value."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class RefusedFileError(OSError):
    """A file exists but is not read. ``strerror`` says why."""

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(None, reason, os.fspath(path))

    def __str__(self) -> str:
        return str(self.strerror)


class FileTooLargeError(RefusedFileError):
    """A file is larger than allowed."""


def check_regular(path: Path) -> None:
    """Check that a path is a regular file, or a link to one.

    Raises:
        OSError: It is not; ``strerror`` says why.
    """
    _check_kind(os.stat(path), path)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, without blocking.

    Raises:
        OSError: It cannot be opened, or is a pipe, a device or a folder; ``strerror`` says why.
    """
    try:
        check_regular(path)  # opening some devices has side effects
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as error:
        raise RefusedFileError("no file can have that name", path) from error
    try:
        _check_kind(os.fstat(descriptor), path)  # the path may have been replaced since the check
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Read a regular file.

    Args:
        path: The file.
        max_bytes: Maximum size.

    Raises:
        OSError: It cannot be read, is not a regular file, or is larger; ``strerror`` says why.
    """
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        content = b"" if size_bytes > max_bytes else file.read(max_bytes + 1)
    if content is None:  # a non-blocking read of some files in /proc
        raise RefusedFileError("it has no content yet", path)
    if max(size_bytes, len(content)) > max_bytes:
        limit = f"{max_bytes >> 20} MiB" if max_bytes >= 2**20 else f"{max_bytes >> 10} KiB"
        raise FileTooLargeError(f"it is larger than {limit}", path)
    return content


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file.

    Raises:
        OSError: As in :func:`read_regular`.
        ValueError: It is not JSON in UTF-8, or nested too deeply.
    """
    try:
        return json.loads(read_regular(path, max_bytes).decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _check_kind(status: os.stat_result, path: Path) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "something else")
        raise RefusedFileError(f"it is {what}, not a regular file", path)
