"""Atomic writes: a file appears under its name only once it is complete."""

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
    """A hidden, unused name for an incomplete output, next to it.

    If the output is an existing folder, which may be a link or a mount point, the name is inside.

    Args:
        path: The output.
        token: Distinguishes outputs of the same name and lets a caller find the file again; random
            if None.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]  # distinguishes truncated names
    token = token or secrets.token_hex(4)
    name = f".{path.stem[:40]}.{digest}.{token}.partial{path.suffix}"
    return path / name if path.is_dir() else path.with_name(name)


def is_partial(path: Path) -> bool:
    """Whether a name comes from :func:`partial_path`."""
    return path.name.startswith(".") and ".partial" in path.name


def numbered(path: Path) -> Iterator[Path]:
    """``out.mp4``, ``out-2.mp4``, ``out-3.mp4``, and so on."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def rename_to_unused(source: Path, target: Path) -> None:
    """Rename a file or folder to an unused name. If two processes race for a name, one gets it.

    Raises:
        FileExistsError: The name is in use; the existing file is unchanged.
        OSError: It cannot be renamed.
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
    except OSError:  # no hard links on this file system: reserve the name with an empty file
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            os.replace(source, target)
        except OSError:
            target.unlink()
            raise
    else:
        source.unlink()


def write_to_unused(path: Path, content: bytes) -> Path:
    """Write a file under the first unused name of ``name``, ``name-2``, ``name-3``, ...

    Returns:
        The path of the file.

    Raises:
        EngineError: The file cannot be written; nothing is left behind.
    """
    partial = partial_path(path)
    with writing(path):
        try:
            partial.write_bytes(content)
            for each in numbered(path):
                try:
                    rename_to_unused(partial, each)
                    return each
                except FileExistsError:
                    continue
            raise AssertionError("unreachable: numbered() is infinite")
        finally:
            partial.unlink(missing_ok=True)


def probe(folder: Path) -> None:
    """Check that a folder is writable by writing a small file and removing it.

    Raises:
        OSError: The folder is not writable, or its disk is full.
    """
    path = folder / f".probe.{secrets.token_hex(8)}.partial"
    try:
        path.write_bytes(bytes(_PROBE_BYTES))
    finally:
        path.unlink(missing_ok=True)


def write_atomically(
    path: Path, content: bytes, *, durable: bool = False, partial: Path | None = None
) -> None:
    """Write a file atomically, replacing an existing one.

    Args:
        path: The file.
        content: Its content.
        durable: Whether to flush to disk, so that the file survives a crash of the host.
        partial: Temporary path on the same disk; next to the file if None.

    Raises:
        EngineError: The file cannot be written; nothing is left behind.
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
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn exceptions raised while writing into an EngineError that names the file."""
    try:
        yield
    except Exception as error:
        raise EngineError(f"{path} cannot be written: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """The operating system's message in an exception chain, else the exception's own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno and link.strerror:
            return os.strerror(link.errno) if link.errno < 1000 else link.strerror
        link = link.__cause__ or link.__context__
    return one_line(error)
