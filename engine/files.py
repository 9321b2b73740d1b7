"""Files under another name until they are whole, and what goes wrong with them in words."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.errors import EngineError, one_line


def partial_path(path: Path) -> Path:
    """Where an output stands until it is whole: hidden, beside it, at no name that is taken.

    In a folder that is there already, which may be a link or a mount: inside.
    """
    name = f".{path.stem[:40]}.{secrets.token_hex(4)}.partial{path.suffix}"
    return path / name if path.is_dir() else path.with_name(name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only once it is whole.

    Raises:
        EngineError: it cannot be written; nothing is left behind.
    """
    partial = partial_path(path)
    with writing(path):
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


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
