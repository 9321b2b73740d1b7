"""Files under another name until they are whole, and what goes wrong with them in words."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.errors import EngineError, one_line


def partial_path(path: Path, token: str | None = None) -> Path:
    """Where an output stands until it is whole: hidden, beside it, at no name that is taken.

    In a folder that is there already, which may be a link or a mount: inside.

    Args:
        token: tells it from others' of the same name, so that it can be found again; drawn if None.
    """
    told_apart = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]  # where a name is cut
    token = token or secrets.token_hex(4)
    name = f".{path.stem[:40]}.{told_apart}.{token}.partial{path.suffix}"
    return path / name if path.is_dir() else path.with_name(name)


def write_whole(
    path: Path, content: bytes, *, durable: bool = False, partial: Path | None = None
) -> None:
    """Write a file that appears under its name only once it is whole.

    Args:
        durable: and only once it is on the disk, whatever becomes of this host.
        partial: where it stands until then, on the same disk; beside it if None.

    Raises:
        EngineError: it cannot be written; nothing is left behind.
    """
    partial = partial or partial_path(path)
    with writing(path):
        try:
            partial.write_bytes(content)
            if durable:
                flush_to_disk(partial)
            os.replace(partial, path)
            if durable:
                flush_to_disk(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def flush_to_disk(path: Path) -> None:
    """Return once a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into an EngineError that names the file."""
    try:
        yield
    except Exception as error:
        raise EngineError(f"{path} cannot be written: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """The operating system's reason, which libraries bury."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno and link.strerror:
            return os.strerror(link.errno) if link.errno < 1000 else link.strerror
        link = link.__cause__ or link.__context__
    return one_line(error)
