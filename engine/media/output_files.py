"""The files of an output: which existing files they may replace, and publishing them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from longtake.configs.field_types import OutputType
from longtake.engine.media.frame_writers import WRITERS, kind_of
from longtake.engine.media.paths import (
    LATENTS_SUFFIX,
    OutputTarget,
    kept_latents_path,
    metadata_path,
    output_paths,
    snapshot_path,
)
from longtake.errors import RefusedInputError, RequestError
from longtake.files.atomic import cause, is_partial, numbered, probe, rename_to_unused

_LARGEST_METADATA_BYTES = 2**26
_HINT = "name another output, or pass --overwrite (overwrite=True in Python)"


def output_type(path: Path) -> OutputType:
    """What a file of this name contains, frames or latents.

    Raises:
        RequestError: The suffix is unknown.
    """
    if kind_of(path) == LATENTS_SUFFIX:
        return "latents"
    if kind_of(path) not in WRITERS:
        raise RequestError(
            f"output={str(path)!r} has the suffix {path.suffix!r}: use "
            f"{', '.join(filter(None, WRITERS))}, {LATENTS_SUFFIX}, or none for a folder of PNG "
            "files"
        )
    return "frames"


def is_metadata(path: Path) -> bool:
    """Whether a file contains a video's metadata in longtake's format."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_METADATA_BYTES:
            return False
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    parts = ("request", "engine")
    return isinstance(content, dict) and all(isinstance(content.get(n), dict) for n in parts)


def free_output(path: Path, num_videos: int, *, metadata: bool) -> Path:
    """The first of ``out.mp4``, ``out-2.mp4``, ``out-3.mp4``, ... of which no file exists, and none
    that an interrupted rendering left."""

    def is_free(each: Path) -> bool:
        names = [each, *output_paths(each, num_videos)]
        names += [snapshot_path(each), kept_latents_path(each)]
        names += [metadata_path(each)] if metadata else []
        return not any(map(os.path.lexists, names))

    return next(filter(is_free, numbered(path)))


def check_output(target: OutputTarget, num_videos: int, *, keeps: bool = True) -> None:
    """Check, before anything is rendered, that an output can be written.

    Args:
        target: Where the output goes.
        num_videos: Number of videos.
        keeps: Whether snapshots and latents will be kept while it is rendered.

    Raises:
        RequestError: The suffix is unknown, the folder is missing, write-protected or full, a name
            is too long, or a file exists that may not be replaced.
    """
    path, overwrite = target.path, target.overwrite
    if path.name in ("", ".."):
        raise RequestError(f"output={str(path)!r} has no name: name a file, or a folder for PNGs")
    output_type(path)
    outputs = output_paths(path, num_videos)
    try:
        if not path.parent.is_dir():
            raise RequestError(
                f"output={str(path)!r}: there is no folder {path.parent}; make it first"
            )
        for each in outputs:
            if kind_of(path) == "":
                _check_folder(each, metadata_path(path), overwrite)
            else:
                _check_file(each, overwrite)
        if target.metadata:
            _check_metadata(metadata_path(path), overwrite)
        if keeps:
            _check_length(path, [snapshot_path(path, 9), kept_latents_path(path, 9)])
        for folder in {path.parent, *(each for each in outputs if each.is_dir())}:
            _check_writable(path, folder)
    except RefusedInputError:
        raise
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise RequestError(f"output={str(path)!r} cannot be a file: {cause(error)}") from error


def _check_folder(path: Path, metadata: Path, overwrite: bool) -> None:
    """A folder for PNG files may exist if it is empty, or if longtake wrote its files."""
    if not os.path.lexists(path) or is_empty_folder(path):
        return
    if not overwrite or not path.is_dir():
        raise RequestError(
            f"output={str(path)!r} exists and is not an empty folder: name another one, or "
            "end the name in .mp4, .webm, .gif, .npy or .safetensors for a file"
        )
    if not is_metadata(metadata):
        raise RequestError(
            f"output={str(path)!r} is a folder of files that longtake did not write: there is no "
            f"{metadata.name} next to it; name another folder"
        )


def _check_file(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise RequestError(f"output={str(path)!r} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise RequestError(
            f"output={str(path)!r} is a pipe or a device, and a complete video is renamed into "
            "place: name a file"
        )
    try:
        found = path.lstat()  # also raises for an impossible name
    except FileNotFoundError:
        return
    if not overwrite:
        raise RequestError(f"output={str(path)!r} already exists: {_HINT}")
    _check_replaceable(path, found)


def _check_replaceable(path: Path, found: os.stat_result) -> None:
    """Refuse to replace a write-protected file, or another user's in a folder like /tmp."""
    if not stat.S_ISLNK(found.st_mode) and not found.st_mode & 0o222:
        raise RequestError(f"output={str(path)!r} is read-only: name another output")
    folder, user = path.parent.stat(), os.geteuid()
    if folder.st_mode & stat.S_ISVTX and user not in (0, found.st_uid, folder.st_uid):
        raise RequestError(f"output={str(path)!r} is another user's: name another output")


def _check_metadata(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise RequestError(f"{path} is a folder: move it, or pass --no-metadata")
    if not os.path.lexists(path):
        _check_length(path, [path])
        return
    if not overwrite:
        raise RequestError(f"{path} already exists: {_HINT}")
    if not is_metadata(path):
        raise RequestError(
            f"{path} exists, and is not a video's metadata: move it, or pass --no-metadata"
        )
    _check_replaceable(path, path.lstat())


def _check_length(output: Path, derived: Iterable[Path]) -> None:
    """Refuse an output if a name that is derived from it is too long."""
    for path in derived:
        try:
            path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RequestError(
                f"output={str(output)!r}: {path.name!r}, written next to it, cannot be a file: "
                f"{cause(error)}"
            ) from error


def _check_writable(path: Path, folder: Path) -> None:
    try:
        probe(folder)
    except OSError as error:
        raise RequestError(
            f"output={str(path)!r}: {folder} cannot be written to: {cause(error)}"
        ) from error


def is_empty_folder(path: Path) -> bool:
    """Whether a folder is empty, except for partial files of killed renderings."""
    return path.is_dir() and all(is_partial(each) for each in path.iterdir())


def place_all(moves: Sequence[tuple[Path, Path]]) -> bool:
    """Rename files and folders, all or none.

    Args:
        moves: Pairs of source and target. An empty target folder is filled, not replaced: it may be
            a link or a mount.

    Returns:
        False if a target exists; then nothing was renamed.

    Raises:
        OSError: One cannot be renamed; then nothing was renamed.
    """
    done: list[tuple[Path, Path]] = []
    try:
        for partial, path in moves:
            for source, target in _single_moves(partial, path):
                rename_to_unused(source, target)
                done.append((source, target))
    except BaseException as error:
        for source, target in reversed(done):
            with suppress(OSError):
                os.rename(target, source)
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def _single_moves(partial: Path, path: Path) -> list[tuple[Path, Path]]:
    if not (partial.is_dir() and path.is_dir()):
        return [(partial, path)]
    if not is_empty_folder(path):
        raise FileExistsError(path)
    return [(frame, path / frame.name) for frame in sorted(partial.iterdir())]
