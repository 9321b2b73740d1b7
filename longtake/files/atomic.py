"""Files under another name until they are whole, and what goes wrong with them in words."""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.errors import EngineError, one_line

_PROBE_BYTES = 2**14


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


def is_partial(path: Path) -> bool:
    """Whether a name is one of :func:`partial_path`."""
    return path.name.startswith(".") and ".partial" in path.name


def numbered(path: Path) -> Iterator[Path]:
    """``out.mp4``, ``out-2.mp4``, ``out-3.mp4``, and so on."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def place_new(source: Path, target: Path) -> None:
    """Rename a file, or a folder, to a name that must be free. Of two processes that want the same
    name, one gets it.

    Raises:
        FileExistsError: the name is taken; what stands there is left alone.
        OSError: it cannot be renamed.
    """
    if source.is_dir():
        try:
            os.rename(source, target)
        except OSError as error:
            if os.path.lexists(target):
                raise FileExistsError(target) from error
            raise
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: an empty file takes the name first
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            os.replace(source, target)
        except OSError:
            target.unlink()
            raise
    else:
        source.unlink()


def write_new(path: Path, content: bytes) -> Path:
    """Write a file at the first of ``name``, ``name-2``, ``name-3``... that is free; returns where.

    Raises:
        EngineError: it cannot be written; nothing is left behind.
    """
    partial = partial_path(path)
    with writing(path):
        try:
            partial.write_bytes(content)
            for each in numbered(path):
                try:
                    place_new(partial, each)
                    return each
                except FileExistsError:
                    continue
            raise AssertionError("numbers do not end")
        finally:
            partial.unlink(missing_ok=True)


def probe(folder: Path) -> None:
    """Write some bytes into a folder, and remove them.

    Raises:
        OSError: it cannot be written to, or its disk is full.
    """
    path = folder / f".probe.{secrets.token_hex(8)}.partial"
    try:
        path.write_bytes(bytes(_PROBE_BYTES))
    finally:
        path.unlink(missing_ok=True)


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
